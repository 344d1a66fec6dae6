//! Copying the output store while it is in use or not.
//!
//! First the index, as one moment has it, then the segments: these only grow at their end, so they hold all that the
//! index speaks of. A start reads what lies beyond it, and cuts off a frame that was copied in half.

use std::path::{Path, PathBuf};

use super::{OutputError, segments::Segments};
use crate::store::backup::{copy_into, reader};

/// Copies the index to a file that must not be there; says whether there is one.
pub(crate) async fn copy_index(directory: &Path, to: &Path) -> Result<bool, OutputError> {
    let path = directory.join("index.db");
    if !path.exists() {
        return Ok(false);
    }
    let copied = async {
        let mut connection = reader(&path).await?;
        copy_into(&mut connection, to).await
    };
    let source = copied.await.err();
    match source {
        None => Ok(true),
        Some(source) => Err(OutputError::Index { path, source }),
    }
}

/// The segments that there are now, oldest first.
pub(crate) fn segments(directory: &Path) -> Result<Vec<PathBuf>, OutputError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let segments = Segments::new(directory);
    let list = segments.list()?;
    Ok(list
        .iter()
        .map(|segment| segments.path(segment.number))
        .collect())
}
