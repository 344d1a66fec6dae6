//! A command as clients show it.

use muster_proto::v1::Command;

use super::{ActionKind, json_quoted, shell_quoted};

impl ActionKind for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn summary(&self) -> String {
        match &self.script {
            Some(script) => {
                let shell = match script.shell.as_str() {
                    "" => "sh",
                    shell => shell,
                };
                format!("{shell}: {}", script.text.trim())
            }
            None => {
                let argv = self.argv.iter().map(|argument| shell_quoted(argument));
                argv.collect::<Vec<_>>().join(" ")
            }
        }
    }

    fn quoted(&self) -> String {
        match &self.script {
            Some(script) => format!("script {}", json_quoted(&script.text)),
            None => serde_json::Value::from(self.argv.as_slice()).to_string(),
        }
    }

    fn circumstances(&self) -> String {
        let mut text = String::new();
        if let Some(shell) = self.script.as_ref().map(|script| &script.shell)
            && !shell.is_empty()
        {
            text.push_str(&format!(" by {}", json_quoted(shell)));
        }
        let mut env: Vec<_> = self.env.iter().collect();
        env.sort();
        for (name, value) in env {
            text.push_str(&format!(" {name}={}", json_quoted(value)));
        }
        if !self.cwd.is_empty() {
            text.push_str(&format!(" in {}", json_quoted(&self.cwd)));
        }
        if !self.user.is_empty() {
            text.push_str(&format!(" as {}", json_quoted(&self.user)));
        }
        if !self.stdin.is_empty() {
            let stdin = String::from_utf8_lossy(&self.stdin);
            text.push_str(&format!(" with the input {}", json_quoted(&stdin)));
        }
        text
    }

    fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    fn term(&self) -> Option<&str> {
        let own = self.env.get("TERM").map(String::as_str);
        own.or_else(|| Some(self.terminal.as_ref()?.term.as_str()))
    }

    fn takes_input(&self) -> bool {
        self.open_stdin || self.terminal.is_some()
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::Script;

    use super::*;

    #[test]
    fn a_command_reads_as_a_shell_would_take_it() {
        let argv = ["grep", "-e", "it's", "", "/var/log/x"].map(str::to_owned);
        let mut command = Command {
            argv: argv.to_vec(),
            ..Command::default()
        };
        assert_eq!(command.summary(), "grep -e 'it'\\''s' '' /var/log/x");
        assert_eq!(command.quoted(), r#"["grep","-e","it's","","/var/log/x"]"#);
        command.script = Some(Script {
            text: "cd /srv\nls\n".to_owned(),
            shell: "bash".to_owned(),
        });
        assert_eq!(command.summary(), "bash: cd /srv\nls");
        assert_eq!(command.quoted(), r#"script "cd /srv\nls\n""#);
    }

    #[test]
    fn all_of_a_command_is_told_to_who_confirms_it() {
        let command = Command {
            argv: vec!["psql".to_owned()],
            env: [("B", "2 b"), ("A", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            cwd: "/srv/db".to_owned(),
            user: "postgres".to_owned(),
            stdin: "drop table t;\n".into(),
            ..Command::default()
        };
        assert_eq!(
            command.circumstances(),
            r#" A="1" B="2 b" in "/srv/db" as "postgres" with the input "drop table t;\n""#
        );
        assert_eq!(Command::default().circumstances(), "");
    }
}
