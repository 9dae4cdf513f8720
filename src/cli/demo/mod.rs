use crate::error::Result;
use clap::Args;
use std::process::ExitCode;
#[derive(Args)]
pub(super) struct DemoArgs {}
pub(super) async fn run(_: DemoArgs) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
