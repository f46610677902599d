//! Pages.

use pclive_proto::peer::extent::Kind;
use pclive_proto::peer::page_batch::{Encoding, Target};
use pclive_proto::peer::{Extent, PageBatch};

use super::{in_pages, suite};
use crate::proxy::Attack;

type Edit = fn(&mut PageBatch);

fn run(start: u64, pages: u64, kind: Kind) -> Extent {
    Extent { start, pages, kind: kind.into() }
}

/// Only these runs, none of them with contents.
fn only(batch: &mut PageBatch, extents: Vec<Extent>) {
    (batch.extents, batch.payload, batch.checksum) = (extents, Vec::new().into(), 0x2d06_8005_38d3_94c2);
}

const ATTACKS: [(&str, &[&str], Edit); 18] = [
    ("damaged pages", &["checksum"], |batch| batch.checksum ^= 1),
    ("fewer bytes than claimed", &["claims"], |batch| batch.payload = batch.payload.slice(4096..)),
    ("more bytes than claimed", &["claims"], |batch| batch.extents.truncate(0)),
    ("an unknown encoding", &["encoding 9"], |batch| batch.encoding = 9),
    ("an unknown kind", &["a run of kind 9"], |batch| batch.extents[0].kind = 9),
    ("contents that unpack to more", &["unpacked"], |batch| {
        let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).unwrap();
        (batch.payload, batch.encoding) = (bomb.into(), Encoding::Zstd.into());
    }),
    ("contents that unpack to nothing", &["unpacked"], |batch| {
        (batch.payload, batch.encoding) = (vec![0x55; 16].into(), Encoding::Zstd.into());
    }),
    ("a run that wraps around", &["a run of"], |batch| batch.extents[0].pages = u64::MAX),
    ("a run that begins within a page", &["a run of"], |batch| batch.extents[0].start += 1),
    ("runs that go back", &["a run of"], |batch| {
        only(batch, vec![run(8192, 1, Kind::Zero), run(0, 1, Kind::Zero)])
    }),
    ("memory of the kernel", &["beyond the end", "a run of"], |batch| {
        only(batch, vec![run(0xffff_8000_0000_0000, 1, Kind::Zero)]);
    }),
    ("memory above the user's", &["beyond the end"], |batch| {
        batch.extents = vec![run(1 << 47, batch.payload.len() as u64 / 4096, Kind::Data)];
    }),
    ("memory that is not mapped", &["outside the private mappings", "announced"], |batch| {
        only(batch, vec![run(0x3000_0000_0000, 1 << 20, Kind::Zero)]);
    }),
    ("all memory at once", &["outside the private mappings", "announced"], |batch| {
        only(batch, vec![run(0x10000, (1 << 35) - 32, Kind::Hole)]);
    }),
    ("too many runs", &["more than the limits"], |batch| only(batch, vec![run(0, 1, Kind::Zero); 5000])),
    ("a process that is not there", &["4242"], |batch| batch.target = Some(Target::Process(4242))),
    ("process zero", &["process 0"], |batch| batch.target = Some(Target::Process(0))),
    ("an object that is not there", &["not announced"], |batch| batch.target = Some(Target::Object(4242))),
];

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_cannot_be_are_refused() {
    let Some(mut pair) = suite("pages").await else { return };
    for (name, words, edit) in ATTACKS {
        pair.refuses(name, words, in_pages(edit)).await;
    }
    pair.finish(Attack::default()).await;
}
