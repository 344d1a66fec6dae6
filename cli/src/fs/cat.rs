//! `muster fs cat`: the content of a file, or a part of it.

use std::time::Duration;

use muster_client::files;
use muster_proto::v1::{ByteRange, CreateJobRequest, FileRead, LineRange, file_read::Part};

use super::{Place, part};
use crate::{
    failure::{Failure, exit},
    operator::Operator,
    run::{follow, living},
};

/// How long a reading that nobody wants any more may take to be called off.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster fs cat web-1:/etc/hosts
  muster fs cat web-1:/var/log/syslog --lines -20..        the last 20 lines
  muster fs cat web-1:/var/log/syslog --lines 100..120     lines 100 to 120
  muster fs cat web-1:/srv/app/logo.png > logo.png
  muster fs cat db-1:/srv/dump.sql --bytes 1048576..       from that byte on
  muster fs cat 'env=prod:/etc/os-release'                 each line with its host before it
  muster fs cat 'image=nginx:1.29' /etc/nginx/nginx.conf   a selector with a colon stands for itself
  muster fs cat web-1:notes.txt --user ada                 below ada's home directory

Bytes come as they are. What goes on behind is told on standard error, with the way to read on.

Exit codes:
  0 all that was asked for came; 1 on some of several hosts it did not, or the file goes on behind 256 MiB
  64 called wrongly, 69 nobody answers, 77 not allowed: by policy, or by mode or user on the host
  66 there is no such file, 65 it is of another type, as a directory, 74 it cannot be read
  124 timed out, 125 lost, rejected, expired or incomplete, 130 interrupted or cancelled")]
pub(crate) struct Cat {
    #[command(flatten)]
    place: Place,

    /// Only these bytes, counted from 0: FROM..TO without TO. A negative number counts from the end
    #[arg(long, value_name = "FROM..TO", value_parser = part::bytes, allow_hyphen_values = true, conflicts_with = "lines")]
    bytes: Option<ByteRange>,

    /// Only these lines, counted from 1: FROM..TO with TO, or one. A negative number counts from the end
    #[arg(long, value_name = "FROM..TO", value_parser = part::lines, allow_hyphen_values = true)]
    lines: Option<LineRange>,

    /// At most so much of each host, as 64K or 10M [default: 256M, which is the most]
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    max_bytes: Option<i64>,
}

fn limit(text: &str) -> Result<i64, String> {
    match living::size(text)? {
        size if size <= files::CONTENT_MAX => Ok(size),
        _ => Err("at most 256M come at once; --bytes reads on behind".to_owned()),
    }
}

impl Cat {
    pub(super) async fn run(self, operator: &Operator) -> Result<u8, Failure> {
        let request = self.request()?;
        let client = operator.connect().await?;
        let run = |request| client.run(request);
        let watch = self.place.confirm.run(request, run).await?;
        let job_id = watch.job_id().to_owned();
        let followed = follow::follow(&client, watch, operator.json).await;
        if matches!(&followed, Err(failure) if failure.code == exit::BROKEN_PIPE) {
            // Nobody reads on here, so nobody has to there. If it cannot be told, its timeout ends it.
            let cancel = client.cancel(&job_id, "", None);
            let _ = tokio::time::timeout(CANCEL_LIMIT, cancel).await;
        }
        followed
    }

    fn request(&self) -> Result<CreateJobRequest, Failure> {
        let part = match (self.bytes, self.lines) {
            (Some(bytes), _) => Some(Part::Bytes(bytes)),
            (None, lines) => lines.map(Part::Lines),
        };
        self.place.request(FileRead {
            part,
            // A copy of a file must not be a part of it unasked.
            max_bytes: self.max_bytes.unwrap_or(files::CONTENT_MAX),
            ..FileRead::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use muster_proto::v1::Mode;

    use super::*;

    #[derive(clap::Parser, Debug)]
    struct Program {
        #[command(flatten)]
        cat: Cat,
    }

    fn parse(arguments: &[&str]) -> Result<Cat, clap::Error> {
        let arguments = std::iter::once(&"cat").chain(arguments);
        Program::try_parse_from(arguments).map(|program| program.cat)
    }

    fn file(request: &CreateJobRequest) -> FileRead {
        files::asked(request.action.as_ref()).unwrap().clone()
    }

    #[test]
    fn all_of_a_file_is_asked_for_unless_somebody_says_less() {
        let request = parse(&["web-1:/etc/hosts"]).unwrap().request().unwrap();
        assert_eq!(request.selector, "web-1");
        assert_eq!(request.mode(), Mode::Unspecified);
        let all = file(&request);
        assert_eq!((&*all.path, all.max_bytes), ("/etc/hosts", 256 << 20));
        assert_eq!(all.part, None);

        let arguments = ["all", "~/x", "--lines", "-20..", "--max-bytes", "64K"];
        let more = ["--user", "ada", "--mode", "read-only", "--timeout", "5s"];
        let request = parse(&[&arguments[..], &more].concat()).unwrap();
        let request = request.request().unwrap();
        assert_eq!(request.mode(), Mode::ReadOnly);
        let some = file(&request);
        let last = LineRange {
            first: -20,
            count: 0,
        };
        assert_eq!(some.part, Some(Part::Lines(last)));
        assert_eq!((&*some.user, some.max_bytes), ("ada", 64 << 10));
        assert_eq!(some.timeout.unwrap().seconds, 5);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            &[][..],
            &["web-1:/x", "--lines", "1..2", "--bytes", "1..2"],
            &["web-1:/x", "--lines", "2..1"],
            &["web-1:/x", "--max-bytes", "1G"],
            &["web-1:/x", "--mode", "disabled"],
            &["web-1", "/x", "/y"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
