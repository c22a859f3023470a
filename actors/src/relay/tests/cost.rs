//! What a session costs at rest and in wake-ups.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_big_result_passes_whole() {
    local(async {
        let mut rig = start(Setup::default());
        rig.says("q\n").await;
        rig.target_gets().await;
        let mut writer = rig.to_gateway;
        spawn_local(async move {
            let line = Bytes::from([vec![b'y'; 60_000], vec![b'\n']].concat());
            for _ in 0..500 {
                writer.send(line.clone()).await.unwrap();
            }
            writer.eof();
        });
        let mut all = vec![];
        rig.client.read_to_end(&mut all).await.unwrap();
        let farewell = b"farewell: the target closed the connection\n";
        assert!(all.ends_with(farewell));
        assert_eq!(all.len(), 500 * 60_001 + farewell.len());
    })
    .await;
}

#[tokio::test]
async fn a_relay_at_rest_is_small() {
    local(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mux, _agent, _) = pair();
        let (_sender, receiver) = control();
        let relay = run(Parts {
            client,
            early: Bytes::new(),
            dialogue: Bare,
            channel: mux.channel(0),
            mux,
            recorder: Kept::default(),
            chain: Chain::default(),
            record: RecordLimits::default(),
            holds: HoldLimits::default(),
            control: receiver,
            counters: Rc::default(),
            limits: SessionLimits::default(),
        });
        let bytes = size_of_val(&relay) + Mux::shared_bytes();
        assert!(bytes <= 8 * 1024, "{bytes} bytes a session");
    })
    .await;
}

/// A dialogue of no size.
struct Bare;

impl Dialogue for Bare {
    fn client(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        Ok(Batch {
            bytes,
            ..Batch::default()
        })
    }
    fn apply(&mut self, batch: Batch, _: &[(usize, Refusal)]) -> Applied {
        Applied {
            target: [batch.bytes].into_iter().collect(),
            ..Applied::default()
        }
    }
    fn target(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        self.client(bytes)
    }
    fn idle(&self) -> bool {
        true
    }
    fn unfinished(&self) -> usize {
        0
    }
    fn unanswered(&mut self) -> Vec<Outcome> {
        vec![]
    }
    fn notice(&self, _: &str, _: &str) -> Option<Bytes> {
        None
    }
    fn farewell(&self, _: &Refusal) -> Bytes {
        Bytes::new()
    }
}

#[tokio::test]
async fn a_statement_wakes_the_relay_once_a_direction() {
    const STATEMENTS: usize = 200;
    local(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let (mux, agent, _) = pair();
        let (_sender, receiver) = control();
        let mut relay = Box::pin(run(Parts {
            client: socket,
            early: Bytes::new(),
            dialogue: Lines::default(),
            channel: mux.channel(0),
            mux,
            recorder: Kept::default(),
            chain: Chain::default(),
            record: RecordLimits::default(),
            holds: HoldLimits::default(),
            control: receiver,
            counters: Rc::default(),
            limits: SessionLimits::default(),
        }));
        let polls = Rc::new(Cell::new(0usize));
        let counted = polls.clone();
        spawn_local(poll_fn(move |cx| {
            counted.set(counted.get() + 1);
            relay.as_mut().poll(cx).map(|_| ())
        }));
        let (mut from_gateway, mut to_gateway) = agent.channel(0).split();
        spawn_local(async move {
            while let Ok(Some(bytes)) = from_gateway.recv().await {
                from_gateway.consumed(bytes.len());
                to_gateway.send(Bytes::from_static(b"row\n.\n")).await.unwrap();
            }
        });
        let mut answer = [0; 6];
        for _ in 0..STATEMENTS {
            client.write_all(b"select\n").await.unwrap();
            client.read_exact(&mut answer).await.unwrap();
        }
        let polls = polls.get();
        assert!(
            polls <= 2 * STATEMENTS + 20,
            "{polls} polls for {STATEMENTS} statements"
        );
    })
    .await;
}
