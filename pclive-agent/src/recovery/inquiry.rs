//! "What became of it?": the source's question after COMMIT, and the destination's answer.

use std::sync::Arc;

use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::peer::inquire_response::Answer as WireAnswer;
use pclive_proto::peer::{InquireRequest, InquireResponse};

use super::decision::Answer;
use super::withdrawal;
use crate::agent::{Agent, container_id};
use crate::error::{ErrorCode, MigrationError, chain, printable};
use crate::journal::{self, Record, Role, Standing};
use crate::link::{self, PeerAddress};

/// What the destination said, and that in words.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) answer: Answer,
    pub(crate) words: String,
}

/// What a destination is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// What became of the migration.
    Inquire,
    /// To end the copy for good: its source wants the original back.
    Withdraw,
    /// The same as [`Self::Inquire`], and never to end the copy, whoever has asked for that before: its source gives the
    /// original up.
    Renounce,
}

/// Asks the destination of a migration. Ends within twice the connect timeout; a withdrawal may take the timeouts of stop and
/// runtime as well.
pub(crate) async fn ask(agent: &Agent, record: &Record, question: Question) -> Heard {
    match request(agent, record, question).await {
        Ok(response) => heard(&response),
        Err(error) => Heard { answer: Answer::Silent, words: error.message },
    }
}

async fn request(
    agent: &Agent,
    record: &Record,
    question: Question,
) -> Result<InquireResponse, MigrationError> {
    let recorded = PeerAddress { name: record.peer.name.clone(), address: record.peer.address.clone() };
    // An administrator may have given the peer another address since.
    let address = agent.peer_address(&record.peer.name).unwrap_or(recorded);
    let mut client =
        link::connect(&address, &agent.config.peer, &agent.config.migration, agent.keeper.as_ref()).await?;
    let request = InquireRequest {
        protocol_version: PROTOCOL_VERSION,
        migration_id: record.id.clone(),
        container_id: record.container.clone(),
        source_agent: agent.name.clone(),
        withdraw: question == Question::Withdraw,
        renounce: question == Question::Renounce,
    };
    let migration = &agent.config.migration;
    let patience = match question {
        Question::Inquire | Question::Renounce => migration.connect_timeout(),
        // It is answered when the last process has ended and the runtime knows.
        Question::Withdraw => {
            migration.connect_timeout() + migration.stop_timeout() + migration.runtime_timeout()
        }
    };
    match tokio::time::timeout(patience, client.inquire(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(crate::migration::status_error(&status)),
        Err(_) => Err(MigrationError::new(ErrorCode::Timeout, format!("{address} does not answer"))),
    }
}

fn heard(response: &InquireResponse) -> Heard {
    let (answer, words) = match response.answer() {
        WireAnswer::Runs => (Answer::Runs, "it runs there"),
        WireAnswer::Discarded => (Answer::Discarded, "it does not run there and never will"),
        WireAnswer::Pending => (Answer::Pending, "it has not decided yet"),
        WireAnswer::Unknown | WireAnswer::Unspecified => {
            (Answer::Unknown, "it knows nothing of this migration")
        }
    };
    let name = printable(response.agent_name.clone());
    let detail = printable(response.detail.clone());
    let words =
        if detail.is_empty() { format!("{name}: {words}") } else { format!("{name}: {words} ({detail})") };
    Heard { answer, words }
}

/// Answers the source of a migration, and nobody else: an answer can end it. What is undecided is decided against
/// the copy, durably, before this returns.
pub async fn answer(agent: &Arc<Agent>, request: InquireRequest) -> Result<InquireResponse, MigrationError> {
    crate::migration::version_matches(PROTOCOL_VERSION, request.protocol_version, &request.source_agent)?;
    let log = agent.journal.log(&request.migration_id).filter(|log| {
        let log = journal::guard(log);
        let record = log.record();
        record.role == Role::Destination
            && record.container == request.container_id
            && record.peer.name.eq_ignore_ascii_case(&request.source_agent)
    });
    let respond = |answer: WireAnswer, detail: String| InquireResponse {
        answer: answer.into(),
        agent_name: agent.name.clone(),
        detail,
    };
    let Some(log) = log else {
        return Ok(respond(WireAnswer::Unknown, container_there(agent, &request.container_id).await));
    };
    if request.withdraw {
        // A source that does not wait for the answer asks again: what is begun goes on.
        let withdrawn = tokio::spawn(withdrawal::withdraw(Arc::clone(agent), log)).await;
        let withdrawn = withdrawn.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error));
        let (answer, detail) = withdrawn?;
        tracing::info!(
            id = request.migration_id,
            answer = answer.as_str_name(),
            "source wants its container back"
        );
        return Ok(respond(answer, detail));
    }
    // A copy that may be on its way to its end is not said to run.
    let entry = agent.registry.get(&request.migration_id).ok();
    let _deciding = match &entry {
        Some(entry) if journal::guard(&log).record().keep_source_for_ms > 0 => {
            Some(entry.deciding.lock().await)
        }
        Some(_) | None => None,
    };
    let renounce = request.renounce;
    let standing = tokio::task::spawn_blocking(move || {
        let mut log = journal::guard(&log);
        if renounce {
            log.renounce()?
        }
        log.answer()
    });
    let standing = standing.await;
    let standing = standing.map_err(|error| MigrationError::caused(ErrorCode::Internal, &error))?;
    let response = match standing {
        Ok(Standing::Runs) => respond(WireAnswer::Runs, String::new()),
        Ok(Standing::Pending) => respond(WireAnswer::Pending, "the copy is being let go".into()),
        Ok(Standing::Tail) => {
            respond(WireAnswer::Pending, "it runs there and still fetches its last pages".into())
        }
        Ok(Standing::Torn) => {
            let detail = "it ran there, lost its last pages and was ended: an operator has to decide about the original";
            respond(WireAnswer::Pending, detail.into())
        }
        Ok(Standing::Withdrawn) => respond(WireAnswer::Pending, "it ran there and is being ended".into()),
        Ok(Standing::Discarded) => {
            revoke(agent, &request.migration_id);
            respond(WireAnswer::Discarded, String::new())
        }
        Err(error) => respond(WireAnswer::Pending, chain(&error)),
    };
    tracing::info!(id = request.migration_id, answer = response.answer().as_str_name(), "source asks");
    Ok(response)
}

/// A migration that is still under way ends: its commit would be refused.
fn revoke(agent: &Agent, id: &str) {
    if let Ok(entry) = agent.registry.get(id) {
        let message =
            "the source asked what became of the migration and was promised that it does not run here";
        entry.revoke(MigrationError::new(ErrorCode::Discarded, message));
    }
}

/// What the runtimes here say of a container, for people.
async fn container_there(agent: &Agent, name: &str) -> String {
    let Ok(id) = container_id(name) else { return String::new() };
    match agent.locate(id.as_str(), "").await {
        Ok(located) => format!("a container of this name is {} there", located.container.status),
        Err(error) if error.code == ErrorCode::ContainerNotFound => {
            "there is no container of this name".into()
        }
        Err(error) => error.message,
    }
}
