//! The fake's end of the three streams: what it answers, and what it finds wrong.

use super::*;

pub(super) struct Service(pub(super) Arc<State>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Service {
    type AttachStream = Answers<AttachResponse>;
    type ReportStream = Answers<ReportResponse>;
    type UploadStream = Answers<UploadResponse>;

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let (mut incoming, state) = (request.into_inner(), Arc::clone(&self.0));
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let answer = match message.message {
                    Some(upload_request::Message::Known(known)) => {
                        upload_response::Message::Wanted(WantedTasks {
                            task_ids: known.task_ids,
                        })
                    }
                    Some(upload_request::Message::Recalled(recalled)) => {
                        state
                            .seen
                            .send_modify(|seen| seen.recalled.extend(recalled.tasks));
                        upload_response::Message::Taken(Default::default())
                    }
                    Some(upload_request::Message::End(_)) => {
                        upload_response::Message::Complete(Default::default())
                    }
                    _ => continue,
                };
                let message = Some(answer);
                if sender.send(Ok(UploadResponse { message })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let Some(attach_request::Message::Hello(hello)) = incoming
            .message()
            .await?
            .and_then(|message| message.message)
        else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (sender, receiver) = mpsc::channel(1024);
        let (expected_task_ids, upload, mode_limit) = {
            let behaviour = self.0.behaviour.lock();
            (
                behaviour.expected.clone(),
                behaviour.upload,
                behaviour.mode_limit,
            )
        };
        let welcome = Welcome {
            session_epoch: self.0.seen.borrow().hellos.len() as i64 + 1,
            generation: "one".to_owned(),
            time: Some(SystemTime::now().into()),
            // Longer than anything that holds a busy machine up: a session ends where a test ends it.
            heartbeat_interval: Some(Duration::from_secs(10).try_into().unwrap()),
            expected_task_ids,
            host_name: "web-1".to_owned(),
            upload,
            mode_limit: mode_limit.into(),
            ..Default::default()
        };
        let welcome = AttachResponse {
            message: Some(attach_response::Message::Welcome(welcome)),
        };
        sender.send(Ok(welcome)).await.unwrap();
        self.0.seen.send_modify(|seen| {
            seen.hellos.push(hello);
            seen.session = Some(sender.clone());
        });
        let state = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if let Some(attach_request::Message::Heartbeat(_)) = &message.message {
                    let ack = AttachResponse {
                        message: Some(attach_response::Message::HeartbeatAck(Default::default())),
                    };
                    let _ = sender.send(Ok(ack)).await;
                }
                state
                    .seen
                    .send_modify(|seen| seen.messages.extend(message.message));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let mut incoming = request.into_inner();
        let Some(report_request::Message::Open(open)) = incoming
            .message()
            .await?
            .and_then(|message| message.message)
        else {
            return Err(Status::invalid_argument("no open"));
        };
        let (sender, receiver) = mpsc::channel(1024);
        let (task_id, fresh) = (open.task_id.clone(), open.fresh);
        let mut after_sequence = 0;
        self.0.seen.send_modify(|seen| {
            let task = seen.tasks.entry(task_id.clone()).or_default();
            task.opens.push(open);
            task.down = Some(sender.clone());
            after_sequence = task.last_sequence;
        });
        if !fresh {
            let resume = report_response::Message::Resume(Resume { after_sequence });
            sender
                .send(Ok(ReportResponse {
                    message: Some(resume),
                }))
                .await
                .unwrap();
        }
        let state = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut seen = state.seen.subscribe();
            loop {
                let reading = seen
                    .wait_for(|_| !state.behaviour.lock().reads_nothing)
                    .await;
                drop(reading.unwrap());
                let Ok(Some(message)) = incoming.message().await else {
                    return;
                };
                let Some(message) = message.message else {
                    return;
                };
                let answer = state.take(&task_id, message);
                if let Some(answer) = answer
                    && sender
                        .send(Ok(ReportResponse {
                            message: Some(answer),
                        }))
                        .await
                        .is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(
            ReceiverStream::new(receiver).map(|answer| answer),
        )))
    }
}

impl State {
    fn take(
        &self,
        task_id: &str,
        message: report_request::Message,
    ) -> Option<report_response::Message> {
        let mut answer = None;
        self.seen.send_modify(|seen| {
            let Seen {
                tasks, violations, ..
            } = seen;
            let task = tasks.get_mut(task_id).unwrap();
            let behaviour = self.behaviour.lock();
            let output = match message {
                report_request::Message::Open(_) => {
                    violations.push("opened twice".to_owned());
                    return;
                }
                report_request::Message::State(state) => {
                    match state.event {
                        Some(task_state::Event::Started(started)) => task.started = Some(started),
                        Some(task_state::Event::Ended(ended)) => task.ended = Some(ended),
                        None => violations.push("a state without an event".to_owned()),
                    }
                    return;
                }
                report_request::Message::InputResult(result) => {
                    task.results.push(result);
                    return;
                }
                report_request::Message::Kept(kept) => {
                    task.kept = Some(kept);
                    return;
                }
                report_request::Message::OutputEnd(end) => {
                    if end.last_sequence > task.last_sequence && task.kept.is_none() {
                        violations.push(format!(
                            "ends at {} after {}",
                            end.last_sequence, task.last_sequence
                        ));
                    }
                    task.output_ended = true;
                    if behaviour.settles && task.ended.is_some() {
                        task.settled = true;
                        answer = Some(report_response::Message::Settled(Settled {}));
                    }
                    return;
                }
                report_request::Message::Chunk(chunk) => {
                    (chunk.sequence, chunk.stream, chunk.offset, Ok(chunk.data))
                }
                report_request::Message::Gap(gap) => {
                    (gap.sequence, gap.stream, gap.offset, Err(gap.length))
                }
            };
            let (sequence, stream, offset, content) = output;
            if sequence <= task.last_sequence {
                return;
            }
            let stream = usize::from(stream == i32::from(OutputStream::Stderr));
            if sequence != task.last_sequence + 1 || offset != task.offsets[stream] {
                violations.push(format!(
                    "sequence {sequence} at {offset} after {} at {:?}",
                    task.last_sequence, task.offsets
                ));
            }
            task.last_sequence = sequence;
            match content {
                Ok(data) => {
                    task.offsets[stream] += data.len() as i64;
                    let kept = if stream == 0 {
                        &mut task.stdout
                    } else {
                        &mut task.stderr
                    };
                    if !behaviour.discards {
                        kept.extend_from_slice(&data);
                    }
                }
                Err(length) => {
                    task.offsets[stream] += length;
                    task.missing[stream] += length;
                }
            }
            if behaviour.acknowledges {
                answer = Some(report_response::Message::Ack(Ack { sequence }));
            }
        });
        answer
    }
}
