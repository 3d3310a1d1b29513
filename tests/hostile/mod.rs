//! What hostile or broken producers send: messages, references and pictures, each of which costs one typed rejection, in bounded
//! time and memory, while good assets beside them are worked on.
//!
//! `messages`, `references` and `pictures` are the corpus; `trial` sends it all to a worker process.

mod messages;
mod pictures;
mod references;
mod trial;
