//! What runs in the containers, and the clients that check it.
