//! The firn command.

#![forbid(unsafe_code)]

mod address;
mod cli;
mod copy;
mod import;
mod machine;
mod when;

fn main() -> std::process::ExitCode {
    cli::main()
}
