//! SQL over the tables of the jobs.
