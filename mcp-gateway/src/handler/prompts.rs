//! Prompts: what people ask of a fleet again and again, as slash commands of their client.

use rmcp::{
    ErrorData,
    model::{
        GetPromptRequestParams, GetPromptResult, ListPromptsResult, Prompt, PromptArgument,
        PromptMessage, Role,
    },
};

use crate::render::{clean, words};

/// Characters of an argument that are taken over.
const ARGUMENT_MAX: usize = 500;

pub(super) fn list() -> ListPromptsResult {
    let argument = |name: &str, what: &str| {
        PromptArgument::new(name)
            .with_description(what)
            .with_required(true)
    };
    let overview = Prompt::new(
        "fleet_overview",
        Some("Which hosts there are, what they are for, and what needs attention"),
        None,
    );
    let diagnose = Prompt::new(
        "diagnose_host",
        Some("Finds out why a host misbehaves, changing nothing"),
        Some(vec![
            argument("host", "Name of the host"),
            argument("symptom", "What is wrong, in your words"),
        ]),
    );
    ListPromptsResult::with_all_items(vec![overview, diagnose])
}

pub(super) fn get(request: &GetPromptRequestParams) -> Result<GetPromptResult, ErrorData> {
    let argument = |name: &str| {
        let given = request
            .arguments
            .as_ref()
            .and_then(|given| given.get(name)?.as_str());
        let given = given.map(str::trim).filter(|given| !given.is_empty());
        given
            .map(|given| words::shortened(&clean::words(given), ARGUMENT_MAX))
            .ok_or_else(|| ErrorData::invalid_params(format!("{name} is missing"), None))
    };
    let text = match request.name.as_str() {
        "fleet_overview" => "Give me an overview of the fleet. Call host_list with detail=full and \
            page through all hosts; call job_get without job_id for what ran lately. Then tell me in a \
            short table which hosts there are and what each is for, and below it what needs attention: \
            hosts that are offline or locked, hosts without an instruction, jobs that failed, were lost or \
            still wait. Change nothing."
            .to_owned(),
        "diagnose_host" => format!(
            "The host {} shows this symptom: {}\n\nFind the cause. Read its instruction first (host_list \
            target=HOST detail=full), then look with commands that only read, from the general (load, \
            memory, disk, failed services, kernel log) to the particular. Change nothing on the host. End \
            with the cause, the evidence for it, and what you propose to do.",
            argument("host")?,
            argument("symptom")?
        ),
        other => {
            let other = words::shortened(&clean::words(other), 60);
            return Err(ErrorData::invalid_params(
                format!("no such prompt: {other}; there are fleet_overview and diagnose_host"),
                None,
            ));
        }
    };
    Ok(GetPromptResult::new(vec![PromptMessage::new_text(
        Role::User,
        text,
    )]))
}
