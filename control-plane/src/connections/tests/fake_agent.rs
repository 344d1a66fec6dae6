//! A host's end of the streams.

use super::*;

/// An agent, as far as the wire shows.
pub(super) struct Agent {
    pub(super) client: AgentServiceClient<Channel>,
    pub(super) up: mpsc::Sender<AttachRequest>,
    pub(super) down: Streaming<AttachResponse>,
    pub(super) welcome: Welcome,
}

impl Agent {
    pub(super) fn hello(boot: &str, journal: &str, position: i64) -> Hello {
        Hello {
            boot_id: boot.into(),
            journal_id: journal.into(),
            journal_position: position,
            instance_id: "i".into(),
            ..Hello::default()
        }
    }

    pub(super) async fn attach(plane: &Plane, boot: &str, journal: &str, position: i64) -> Self {
        Self::attach_with(plane, Self::hello(boot, journal, position)).await
    }

    pub(super) async fn attach_with(plane: &Plane, hello: Hello) -> Self {
        let channel = Channel::from_shared(format!("http://{}", plane.address))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut client = AgentServiceClient::new(channel);
        let (up, messages) = mpsc::channel(16);
        up.send(AttachRequest {
            message: Some(Up::Hello(hello)),
        })
        .await
        .unwrap();
        let mut down = client
            .attach(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        let Some(Down::Welcome(welcome)) = next(&mut down).await else {
            panic!("the welcome is first");
        };
        Self {
            client,
            up,
            down,
            welcome,
        }
    }

    pub(super) async fn offer(&mut self) -> Offer {
        match next(&mut self.down).await {
            Some(Down::Offer(offer)) => offer,
            other => panic!("expected an offer, got {other:?}"),
        }
    }

    pub(super) async fn says_not_held(&self) {
        let not_held = NotHeld {
            task_ids: self.welcome.expected_task_ids.clone(),
        };
        let message = Some(Up::NotHeld(not_held));
        self.up.send(AttachRequest { message }).await.unwrap();
    }

    pub(super) async fn report(
        &mut self,
        open: Open,
        messages: Vec<ReportUp>,
    ) -> Result<Vec<ReportDown>, Status> {
        let (up, stream) = mpsc::channel(16);
        let all = [vec![ReportUp::Open(open)], messages].concat();
        for message in all {
            let message = Some(message);
            up.send(ReportRequest { message }).await.unwrap();
        }
        let mut down = self
            .client
            .report(ReceiverStream::new(stream))
            .await?
            .into_inner();
        let mut heard = Vec::new();
        while let Some(message) = timeout(PATIENCE, down.message()).await.unwrap()? {
            heard.extend(message.message);
        }
        Ok(heard)
    }

    pub(super) fn open(&self, offer: &Offer, fresh: bool) -> Open {
        let sealed = muster_proto::agent::v1::SealedOffer::decode(offer.sealed_offer.clone());
        Open {
            task_id: sealed.unwrap().task_id,
            session_epoch: self.welcome.session_epoch,
            fresh,
            sealed_offer: if fresh {
                Bytes::new()
            } else {
                offer.sealed_offer.clone()
            },
            seal: if fresh {
                Bytes::new()
            } else {
                offer.seal.clone()
            },
        }
    }
}

pub(super) async fn next(down: &mut Streaming<AttachResponse>) -> Option<Down> {
    let message = timeout(PATIENCE, down.message()).await.unwrap().unwrap();
    message.and_then(|message| message.message)
}

pub(super) fn success(output: &'static [u8]) -> Vec<ReportUp> {
    let state = |position, event| {
        ReportUp::State(TaskState {
            journal_position: position,
            event: Some(event),
        })
    };
    vec![
        state(
            1,
            task_state::Event::Started(task_state::Started::default()),
        ),
        ReportUp::Chunk(Chunk {
            sequence: 1,
            stream: OutputStream::Stdout.into(),
            offset: 0,
            data: Bytes::from_static(output),
        }),
        state(
            2,
            task_state::Event::Ended(task_state::Ended {
                state: task::State::Succeeded.into(),
                exit_code: Some(0),
                run_time: Some(prost_types::Duration::default()),
                ..task_state::Ended::default()
            }),
        ),
        ReportUp::OutputEnd(OutputEnd { last_sequence: 1 }),
    ]
}
