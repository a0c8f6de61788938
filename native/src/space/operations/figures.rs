//! What a space tells of itself in numbers.

use crate::space::Space;
use crate::space::books::counts::{Counts, WindowStats};
use crate::space::headroom::{Headroom, Hindrance};

impl Space {
    /// Pages by state.
    pub fn counts(&self) -> Counts {
        self.inner.lock().counts()
    }

    /// What pages of the last batch were declined for, of the program's own limits, if that is so still.
    pub fn hindrance(&self) -> Option<Hindrance> {
        let inner = self.inner.lock();
        inner.headroom.met().then(|| Headroom::measure(inner.pagemap.as_ref(), inner.private()).used_up()).flatten()
    }

    /// How long windows lasted.
    pub fn windows(&self) -> WindowStats {
        let inner = self.inner.lock();
        inner.barrier.as_ref().map_or(WindowStats::default(), |barrier| {
            let lasted = barrier.lasted();
            WindowStats {
                windows: lasted.total(),
                p50: lasted.quantile(0.5),
                p99: lasted.quantile(0.99),
                max: lasted.max(),
                max_running: barrier.longest_running(),
                over_bound: barrier.over_bound(),
            }
        })
    }
}
