//! The windows that a query assigns rows to.
//!
//! The `Debug` text of these types is part of the fingerprint of a query. Renaming a type, variant
//! or field changes it, and a deployed pipeline then refuses to continue.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::time::{DAY, HOUR};

/// The most windows that one row may belong to; a hop beyond this is a mistake in the query.
const MAX_WINDOWS_PER_ROW: i64 = 100_000;

/// The length of a window, as elapsed time or as calendar periods.
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

/// The window assigner of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum WindowSpec {
    /// Contiguous windows of `size`, shifted by `offset_us`.
    Tumble { size: Size, offset_us: i64 },
    /// Windows of `size`, one starting every `slide`, shifted by `offset_us`.
    Hop { slide: Size, size: Size, offset_us: i64 },
    /// Windows of DataFusion's `date_bin`: days have 24 hours, months are those of UTC, both counted
    /// from `origin` in microseconds.
    DateBin { stride: Size, origin: i64 },
    /// Windows of DataFusion's `date_trunc` in the time zone of the stream.
    DateTrunc { unit: TruncUnit },
}

impl Size {
    /// The length in microseconds, with days of 24 hours and months of 31 days.
    pub(crate) fn nominal_us(self) -> i64 {
        match self {
            Self::Fixed(us) => us,
            Self::Days(n) => i64::from(n) * DAY,
            Self::Weeks(n) => i64::from(n) * 7 * DAY,
            Self::Months(n) => i64::from(n) * 31 * DAY,
        }
    }

    /// Whether window boundaries follow local time rather than elapsed time.
    pub(crate) fn is_local_time_aligned(self) -> bool {
        match self {
            Self::Fixed(us) => us > HOUR && DAY % us == 0,
            Self::Days(_) | Self::Weeks(_) | Self::Months(_) => true,
        }
    }

    /// An upper bound in microseconds of the elapsed time of one window, across changes of the UTC
    /// offset.
    pub(crate) fn max_length_us(self) -> i64 {
        match self {
            Self::Fixed(us) if self.is_local_time_aligned() => us + 2 * HOUR,
            Self::Fixed(us) => us,
            calendar => calendar.nominal_us() + DAY + 2 * HOUR,
        }
    }
}

impl WindowSpec {
    /// Whether a row can belong to several windows.
    pub fn overlaps(&self) -> bool {
        matches!(self, Self::Hop { slide, size, .. } if slide != size)
    }

    /// Checks that sizes are positive and that a row belongs to a limited number of windows.
    ///
    /// # Errors
    /// [`Kind::Sql`](crate::error::Kind::Sql), without a place.
    pub fn validate(&self) -> Result<()> {
        let check_positive = |size: &Size, what: &str| match size.nominal_us() > 0 {
            true => Ok(()),
            false => Err(Error::sql(format!("the {what} of a window must be positive"))),
        };
        match self {
            Self::Tumble { size, .. } => check_positive(size, "size"),
            Self::DateBin { stride, .. } => check_positive(stride, "stride"),
            Self::DateTrunc { .. } => Ok(()),
            Self::Hop { slide, size, .. } => {
                check_positive(slide, "slide")?;
                check_positive(size, "size")?;
                let windows = size.nominal_us() / slide.nominal_us();
                if windows > MAX_WINDOWS_PER_ROW {
                    let found = format!("every row would belong to {windows} windows");
                    return Err(Error::sql("the slide is too short for the size").detail(found));
                }
                Ok(())
            }
        }
    }
}
