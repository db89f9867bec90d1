//! The attribute `#[on_both]`: an async test that takes the kind of its database becomes two tests, one per database.

use proc_macro::{TokenStream, TokenTree};

/// Runs an `async fn name(backend: Backend)` as the tests `name::sqlite` and `name::postgres`.
///
/// Each test has a runtime with two threads. Other attributes of the function apply to both tests.
#[proc_macro_attribute]
pub fn on_both(arguments: TokenStream, function: TokenStream) -> TokenStream {
    if !arguments.is_empty() {
        return error("`on_both` takes no arguments");
    }
    let mut attributes = TokenStream::new();
    let mut rest = function.into_iter().peekable();
    while let Some(TokenTree::Punct(punct)) = rest.peek()
        && punct.as_char() == '#'
    {
        attributes.extend(rest.by_ref().take(2));
    }
    let function: Vec<TokenTree> = rest.collect();
    let words: Vec<String> = function.iter().map(ToString::to_string).collect();
    let [is_async, is_fn, name, ..] = &words[..] else {
        return error("`on_both` must be on an `async fn`");
    };
    if is_async != "async" || is_fn != "fn" {
        return error("`on_both` must be on an `async fn` without a visibility");
    }
    let test = |database: &str, backend: &str| {
        format!(
            "#[tokio::test(flavor = \"multi_thread\", worker_threads = 2)]
            async fn {database}() {{
                {name}(crate::support::database::Backend::{backend}).await;
            }}"
        )
    };
    let tests = [test("sqlite", "Sqlite"), test("postgres", "Postgres")].concat();
    let Ok(tests) = format!("use super::*; {tests}").parse::<TokenStream>() else {
        return error("the tests are no tokens");
    };
    let Ok(module) = format!("mod {name}").parse::<TokenStream>() else {
        return error("the name is no token");
    };
    let mut content = tests;
    content.extend(function);
    let mut output = attributes;
    output.extend(module);
    let group = proc_macro::Group::new(proc_macro::Delimiter::Brace, content);
    output.extend([TokenTree::Group(group)]);
    output
}

fn error(message: &str) -> TokenStream {
    let error = format!("compile_error!({message:?});");
    error.parse().unwrap_or_default()
}
