//! Jobs: what is to be done with the assets of which topics, as job files say it.
