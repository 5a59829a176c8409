//! The program `millstream`; see [`millstream::cli`].

/// The batches of a shard are many small allocations that live and die together; the system's allocator spends a third of the processor on
/// them (docs/src/design/proof-engine.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    millstream::cli::main()
}
