//! What may this reader see?
//!
//! Spaces by id in the one `DashMap`; a space publishes immutable views by one swap (O7), so that a reader works on what was whole
//! when it began. Rows die without moving: each part knows when. A view is sealed rows followed by the tail: parts not sealed yet, each
//! reading from its frame's own buffer; beside them stands history, dead rows in files of their own. Visible
//! implies committed (D8): `apply` runs only when a group is as durable as the space's mode says.

mod apply;
mod deaths;
mod flow;
mod history;
mod indexing;
mod keys;
mod orders;
mod part;
mod snapshot;
mod space;
mod spaces;
mod view;
mod watermark;

pub use apply::{Delta, Observed, apply_forget, apply_observe, apply_voids};
pub use deaths::Deaths;
pub use history::LeftOut;
pub use indexing::{Answers, Tools, image_id, images_dir};
pub use keys::Keys;
pub use orders::{Attached, Batch, Control, Order, Piece, Speaker, Wanted, continues, permits};
pub use part::{Change, DamagedRows, FrameRows, PickedRows};
pub use snapshot::{Pins, Snapshot};
pub use space::{Space, SpaceState};
pub use spaces::Spaces;
pub use view::{AppendList, DEAD_SHARE, Part, Scope, SealedPart, View};
pub use watermark::{Ranges, Watermark};
