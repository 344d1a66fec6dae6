//! What every Muster process does alike.
