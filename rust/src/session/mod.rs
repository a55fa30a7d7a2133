//! Who is speaking, and up to where?
//!
//! A session numbers what it sends 1, 2, 3 …, and knows up to where that is admitted, numbered and committed (S2); duplicates are told their
//! original ids while the `window` has them (S3), attaching makes an epoch that fences the older one's frames (S4). Everything that
//! admission decides is decided in one critical section a session (O2): `section`. A `token` is the right to attach. Nothing
//! here knows records, lanes or spaces; what waits for an answer is a parameter.

mod guard;
mod section;
mod table;
mod token;
mod window;

pub use guard::ExpiryGuard;
pub use section::{Claim, Placed, Priority, Section, Session, SessionState, Stamp};
pub use table::Sessions;
pub use token::{Token, space_tag};
pub use window::{Known, SequenceRun, Window};
