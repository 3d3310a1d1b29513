//! The interactive prompt: statements up to a semicolon, `\d` for tables, `\q` to leave.
//!
//! It knows lines, statements and answers; it does not know configuration or where the history file belongs.
//! Invariant: no error of a statement ends the conversation; only the end of input, `\q` or a broken output does.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::error::QueryError;
use super::print::{self, Format};
use super::session::QuerySession;

const HELP: &str = "Statements end with ; and may span lines.
\\d        lists the tables
\\d NAME   describes a table
\\?        shows this help
\\q        leaves (or Ctrl-D); Ctrl-C stops a running statement
";

/// Where answers and everything else go.
pub struct Screen<'a> {
    pub answers: &'a mut (dyn Write + Send),
    pub messages: &'a mut (dyn Write + Send),
}

/// Talks with the person at the terminal until they leave. Blocks a thread while it waits for a line, so it needs
/// tokio's multi-threaded runtime.
///
/// The history is read from and kept in `history`; a history that cannot be read or written is only logged.
///
/// # Errors
/// [`QueryError::Prompt`] when the terminal cannot be read, [`QueryError::Output`] when it cannot be written.
pub async fn run(
    session: &QuerySession,
    history: Option<PathBuf>,
    format: Format,
    screen: Screen<'_>,
) -> Result<(), QueryError> {
    let mut terminal = Terminal::open(history)?;
    let ended = converse(session, &mut terminal, format, screen, || async {
        // Without a handler nothing can interrupt, so this must then wait for ever.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let ended = ended.await;
    terminal.close();
    ended
}

/// What a person does at a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Input {
    Line(String),
    /// Ctrl-C: forget what was begun.
    Interrupted,
    End,
}

trait Lines {
    fn read(&mut self, prompt: &str) -> Result<Input, QueryError>;
    fn remember(&mut self, statement: &str);
}

struct Terminal {
    editor: DefaultEditor,
    history: Option<PathBuf>,
}

impl Terminal {
    fn open(history: Option<PathBuf>) -> Result<Self, QueryError> {
        let mut editor = DefaultEditor::new().map_err(|error| QueryError::Prompt { detail: error.to_string() })?;
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(error) = editor.load_history(path)
        {
            tracing::debug!(path = %path.display(), error = %error, "history is not read");
        }
        Ok(Self { editor, history })
    }

    fn close(&mut self) {
        let Some(path) = &self.history else { return };
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(ReadlineError::from);
        if let Err(error) = folder.and_then(|()| self.editor.save_history(path)) {
            tracing::debug!(path = %path.display(), error = %error, "history is not kept");
        }
    }
}

impl Lines for Terminal {
    fn read(&mut self, prompt: &str) -> Result<Input, QueryError> {
        match tokio::task::block_in_place(|| self.editor.readline(prompt)) {
            Ok(line) => Ok(Input::Line(line)),
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(QueryError::Prompt { detail: error.to_string() }),
        }
    }

    fn remember(&mut self, statement: &str) {
        if let Err(error) = self.editor.add_history_entry(statement) {
            tracing::debug!(error = %error, "statement is not remembered");
        }
    }
}

async fn converse<I, F>(
    session: &QuerySession,
    lines: &mut impl Lines,
    format: Format,
    mut screen: Screen<'_>,
    interrupt: I,
) -> Result<(), QueryError>
where
    I: Fn() -> F,
    F: Future<Output = ()>,
{
    let mut begun = String::new();
    loop {
        let prompt = if begun.trim().is_empty() { "assay> " } else { "  ...> " };
        match lines.read(prompt)? {
            Input::End => return Ok(()),
            Input::Interrupted => begun.clear(),
            Input::Line(line) if begun.trim().is_empty() && line.trim_start().starts_with('\\') => {
                lines.remember(line.trim());
                if command(session, line.trim(), &mut screen).await? == After::Leave {
                    return Ok(());
                }
            }
            Input::Line(line) => {
                begun.push_str(&line);
                begun.push('\n');
                while let Some(end) = statement_end(&begun) {
                    let rest = begun.split_off(end);
                    let statement = std::mem::replace(&mut begun, rest);
                    lines.remember(statement.trim());
                    tokio::select! {
                        answered = answer(session, &statement, format, &mut screen) => answered?,
                        () = interrupt() => None,
                    }
                    .map_or_else(|| screen.messages.write_all(b"stopped\n"), Ok)?;
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum After {
    GoOn,
    Leave,
}

async fn command(session: &QuerySession, line: &str, screen: &mut Screen<'_>) -> Result<After, QueryError> {
    let line = line.trim_end_matches(';').trim();
    match line.split_once(char::is_whitespace).map_or((line, ""), |(name, rest)| (name, rest.trim())) {
        ("\\q", _) => return Ok(After::Leave),
        ("\\?", _) => screen.messages.write_all(HELP.as_bytes())?,
        ("\\d", "") => list(session, screen).await?,
        ("\\d", table) => {
            answer(session, &format!("DESCRIBE {table}"), Format::Table, screen).await?;
        }
        (other, _) => writeln!(screen.messages, "{other} is no command; \\? shows them")?,
    }
    Ok(After::GoOn)
}

async fn list(session: &QuerySession, screen: &mut Screen<'_>) -> Result<(), QueryError> {
    for name in session.tables().await {
        let remark = if name.written { "" } else { "  (nothing written yet)" };
        writeln!(screen.answers, "{}.{}{remark}", name.schema, name.table)?;
    }
    Ok(screen.answers.flush()?)
}

/// Prints the answer, or why there is none. Always some, so that none can mean that it was interrupted.
async fn answer(
    session: &QuerySession,
    sql: &str,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Option<()>, QueryError> {
    let printed = match session.run(sql).await {
        Ok(batches) => print::write(batches, format, screen.answers).await,
        Err(error) => Err(error),
    };
    match printed {
        Ok(1) => writeln!(screen.messages, "1 row")?,
        Ok(rows) => writeln!(screen.messages, "{rows} rows")?,
        Err(QueryError::Output(error)) => return Err(QueryError::Output(error)),
        Err(error) => writeln!(screen.messages, "{error}")?,
    }
    Ok(Some(()))
}

/// The position behind the first semicolon that ends a statement: not one in quotes or in a comment.
fn statement_end(text: &str) -> Option<usize> {
    let mut inside = None;
    let mut characters = text.char_indices().peekable();
    while let Some((position, character)) = characters.next() {
        let next = characters.peek().map(|(_, next)| *next);
        match (inside, character) {
            (None, ';') => return Some(position + 1),
            (None, '\'' | '"') => inside = Some(character),
            (None, '-') if next == Some('-') => inside = Some('\n'),
            (None, '/') if next == Some('*') => {
                characters.next();
                inside = Some('*');
            }
            (Some('*'), '*') if next == Some('/') => {
                characters.next();
                inside = None;
            }
            (Some('*'), _) => {}
            (Some(end), _) if end == character => inside = None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::query::fixture::{append_results, job};

    #[derive(Default)]
    struct Script {
        inputs: VecDeque<Input>,
        prompts: Vec<String>,
        remembered: Vec<String>,
    }

    impl Lines for Script {
        fn read(&mut self, prompt: &str) -> Result<Input, QueryError> {
            self.prompts.push(prompt.to_owned());
            Ok(self.inputs.pop_front().unwrap_or(Input::End))
        }

        fn remember(&mut self, statement: &str) {
            self.remembered.push(statement.to_owned());
        }
    }

    async fn talk<F: Future<Output = ()>>(inputs: &[Input], interrupt: impl Fn() -> F) -> (Script, String, String) {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("a", 0, None, false)]).await;
        let session = QuerySession::open(&[job(base.path(), "demo")], None).await.unwrap();
        let mut script = Script { inputs: inputs.iter().cloned().collect(), ..Script::default() };
        let (mut answers, mut messages) = (Vec::new(), Vec::new());
        let screen = Screen { answers: &mut answers, messages: &mut messages };
        converse(&session, &mut script, Format::Csv, screen, interrupt).await.unwrap();
        (script, String::from_utf8(answers).unwrap(), String::from_utf8(messages).unwrap())
    }

    fn line(text: &str) -> Input {
        Input::Line(text.to_owned())
    }

    #[tokio::test]
    async fn a_statement_spans_lines_and_one_line_may_hold_two() {
        let inputs = [line("SELECT asset_id"), line("FROM results; SELECT 1 AS one;")];
        let (script, answers, messages) = talk(&inputs, std::future::pending::<()>).await;
        assert_eq!(answers, "asset_id\na\none\n1\n");
        assert_eq!(messages, "1 row\n1 row\n");
        assert_eq!(script.prompts, ["assay> ", "  ...> ", "assay> "]);
        assert_eq!(script.remembered, ["SELECT asset_id\nFROM results;", "SELECT 1 AS one;"]);
    }

    #[tokio::test]
    async fn an_error_does_not_end_the_conversation_and_q_does() {
        let inputs = [line("SELECT wrong FROM results;"), line("SELECT 2 AS two;"), line("\\q"), line("SELECT 3;")];
        let (script, answers, messages) = talk(&inputs, std::future::pending::<()>).await;
        assert_eq!(answers, "two\n2\n");
        assert!(messages.contains("wrong"), "{messages}");
        assert_eq!(script.inputs.len(), 1);
    }

    #[tokio::test]
    async fn commands_list_and_describe_tables() {
        let inputs = [line("\\d"), line("\\d latest"), line("\\x")];
        let (_, answers, messages) = talk(&inputs, std::future::pending::<()>).await;
        assert!(
            answers.starts_with("demo.latest\ndemo.results\ndemo.rejections  (nothing written yet)\n"),
            "{answers}"
        );
        assert!(answers.contains("image_embedding"), "{answers}");
        assert!(messages.contains("\\x is no command"), "{messages}");
    }

    #[tokio::test]
    async fn an_interrupt_stops_the_statement_or_forgets_what_was_begun() {
        let endless = "SELECT count(*) FROM generate_series(1, 4000000000) a, generate_series(1, 4000000000) b;";
        let inputs = [line("SELECT 1,"), Input::Interrupted, line(endless), line("\\d")];
        let (script, answers, messages) = talk(&inputs, || std::future::ready(())).await;
        assert_eq!(messages, "stopped\n");
        assert_eq!(script.prompts[2], "assay> ");
        // The header may be out before the statement is stopped; its answer is not.
        let answers = answers.trim_start_matches("count(*)\n");
        assert!(answers.starts_with("demo.latest"), "{answers}");
    }

    #[test]
    fn a_semicolon_in_quotes_or_comments_ends_nothing() {
        for text in ["SELECT ';'", "SELECT \";\"", "SELECT 1 -- ;", "SELECT /* ; ' */ 1", "SELECT 'it''s ;'"] {
            assert_eq!(statement_end(text), None, "{text}");
        }
        assert_eq!(statement_end("SELECT '\"'; x"), Some(11));
        assert_eq!(statement_end("SELECT 1 -- '\n; x"), Some(15));
    }
}
