//! System call filters: a list of names in, a classic BPF program out (seccomp(2)).

use std::io::Cursor;

use seccompiler::{BpfMap, TargetArch};
use serde::Deserialize;
use serde_json::{Value, json};

const FILTER: &str = "filter";
/// struct sock_filter holds 8 bytes; a program holds at most 4096 of them (BPF_MAXINSNS).
const INSTRUCTION: usize = 8;

/// What a filter lets pass. An action is `allow`, `log`, `trap`, `kill` or `errno:N`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    default: String,
    on_match: String,
    syscalls: Vec<String>,
}

/// Compile `policy` (JSON: `default`, `on_match`, `syscalls`) for this architecture: an array of `struct sock_filter`.
///
/// # Errors
/// What is wrong with the policy, in words: an unknown name, an unknown action, both actions the same.
pub fn compile(policy: &str) -> Result<Vec<u8>, String> {
    let policy: Policy = serde_json::from_str(policy).map_err(|error| format!("seccomp policy: {error}"))?;
    let rules: Vec<Value> = policy.syscalls.iter().map(|name| json!({ "syscall": name })).collect();
    let document = json!({ FILTER: {
        "mismatch_action": action(&policy.default)?,
        "match_action": action(&policy.on_match)?,
        "filter": rules,
    }});
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let mut programs: BpfMap = seccompiler::compile_from_json(Cursor::new(document.to_string()), arch)
        .map_err(|error| format!("seccomp policy: {error}"))?;
    let program = programs.remove(FILTER).unwrap_or_default();
    let mut bytes = Vec::with_capacity(program.len() * INSTRUCTION);
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    Ok(bytes)
}

fn action(text: &str) -> Result<Value, String> {
    match text.split_once(':') {
        None if matches!(text, "allow" | "log" | "trap") => Ok(json!(text)),
        None if text == "kill" => Ok(json!("kill_process")),
        Some(("errno", number)) => {
            let number: u32 =
                number.parse().map_err(|_| format!("seccomp policy: {text:?}: not a number"))?;
            Ok(json!({ "errno": number }))
        }
        _ => Err(format!("seccomp policy: no action {text:?}; there are allow, log, trap, kill and errno:N")),
    }
}

#[cfg(test)]
mod tests {
    use super::compile;

    fn policy(default: &str, names: &[&str]) -> String {
        serde_json::json!({ "default": default, "on_match": "allow", "syscalls": names }).to_string()
    }

    #[test]
    fn a_list_of_names_becomes_whole_instructions() {
        let one = compile(&policy("errno:38", &["read"])).expect("valid");
        let two = compile(&policy("errno:38", &["read", "write"])).expect("valid");
        assert!(!one.is_empty() && one.len().is_multiple_of(8) && two.len() > one.len());
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(compile(&policy("kill", &["no_such_call"])).expect_err("unknown").contains("no_such_call"));
        assert!(compile(&policy("explode", &["read"])).expect_err("unknown").contains("explode"));
        assert!(compile(&policy("errno:x", &["read"])).expect_err("no number").contains("errno:x"));
        assert!(compile("{").is_err());
    }
}
