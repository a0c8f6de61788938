//! What a fork does to a space: owned pages are frozen before it, a parent thaws them when its children are gone, and a child
//! that becomes a client attaches what it inherited.

mod attach;
mod freeze;
mod thaw;
