//! What may this reader see?
//!
//! Spaces by id in the one `DashMap`; a space publishes immutable views by one swap (O7), so that a reader works on what was whole
//! when it began. Rows die without moving: each part knows when. A view is sealed rows followed by the tail: parts not sealed yet, each reading from its frame's own buffer. Visible
//! implies committed (D8): `apply` runs only when a group is as durable as the space's mode says.

mod append;
mod apply;
mod damaged;
mod deaths;
mod flow;
mod keys;
mod part;
mod snapshot;
mod space;
mod spaces;
mod view;
mod watermark;

pub use append::AppendList;
pub use apply::{Delta, Observed, apply_forget, apply_observe};
pub use damaged::DamagedRows;
pub use deaths::Deaths;
pub use keys::Keys;
pub use part::{Change, FrameRows};
pub use snapshot::{Pins, Snapshot};
pub use space::{Batch, Control, Space, SpaceState, Wanted};
pub use spaces::Spaces;
pub use view::{Part, Scope, SealedPart, View};
pub use watermark::Watermark;
