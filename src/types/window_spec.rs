//! How a query cuts time into windows.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::time::{DAY, HOUR};

/// A hop that puts one row into more windows than this is a mistake in the query.
const MOST_WINDOWS: i64 = 100_000;

/// The length of a window: elapsed time or calendar periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Size {
    /// Microseconds.
    Fixed(i64),
    /// Calendar days.
    Days(u32),
    /// Calendar weeks, from Monday.
    Weeks(u32),
    /// Calendar months.
    Months(u32),
}

/// The unit of a `date_trunc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TruncUnit {
    Microsecond,
    Millisecond,
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

/// How a query cuts time into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum WindowSpec {
    /// Windows of `size` side by side, shifted by `offset_us`.
    Tumble { size: Size, offset_us: i64 },
    /// A window of `size` from every `slide` on.
    Hop { slide: Size, size: Size, offset_us: i64 },
    /// DataFusion's `date_bin`: days are 24 hours and months are UTC's, counted from `origin`.
    DateBin { stride: Size, origin: i64 },
    /// DataFusion's `date_trunc` on the stream's zone.
    DateTrunc { unit: TruncUnit },
}

impl Size {
    /// Its length in elapsed time, days as 24 hours and months as 31 days.
    pub(crate) fn nominal_us(self) -> i64 {
        match self {
            Self::Fixed(us) => us,
            Self::Days(n) => i64::from(n) * DAY,
            Self::Weeks(n) => i64::from(n) * 7 * DAY,
            Self::Months(n) => i64::from(n) * 31 * DAY,
        }
    }

    /// Whether its windows end by the local clock rather than by elapsed time.
    pub(crate) fn is_local_time_aligned(self) -> bool {
        match self {
            Self::Fixed(us) => us > HOUR && DAY % us == 0,
            Self::Days(_) | Self::Weeks(_) | Self::Months(_) => true,
        }
    }

    /// No window of this size lasts longer than this, whatever the zone's clock does.
    pub(crate) fn max_length_us(self) -> i64 {
        match self {
            Self::Fixed(us) if self.is_local_time_aligned() => us + 2 * HOUR,
            Self::Fixed(us) => us,
            calendar => calendar.nominal_us() + DAY + 2 * HOUR,
        }
    }
}

impl WindowSpec {
    /// Whether rows can belong to several windows.
    pub fn overlaps(&self) -> bool {
        matches!(self, Self::Hop { slide, size, .. } if slide != size)
    }

    /// Refuses sizes that are not positive, and hops of too many windows a row.
    pub fn validate(&self) -> Result<()> {
        let positive = |size: &Size, what: &str| match size.nominal_us() > 0 {
            true => Ok(()),
            false => Err(Error::sql(format!("the {what} of a window must be positive"))),
        };
        match self {
            Self::Tumble { size, .. } => positive(size, "size"),
            Self::DateBin { stride, .. } => positive(stride, "stride"),
            Self::DateTrunc { .. } => Ok(()),
            Self::Hop { slide, size, .. } => {
                positive(slide, "slide")?;
                positive(size, "size")?;
                let windows = size.nominal_us() / slide.nominal_us();
                if windows > MOST_WINDOWS {
                    let found = format!("every row would belong to {windows} windows");
                    return Err(Error::sql("the slide is too short for the size").detail(found));
                }
                Ok(())
            }
        }
    }
}
