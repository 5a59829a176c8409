//! The program `millstream`; see [`millstream::cli`].

fn main() -> std::process::ExitCode {
    millstream::cli::main()
}
