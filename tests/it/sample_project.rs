//! A small project that several tests share.

use std::time::Duration;

use crate::support::kafka::{Kafka, Write};
use crate::support::process::{self, run, run_for};
use crate::support::project::{Project, unique};

/// A time limit that no command of these tests reaches, even on a busy machine.
pub const LONG: Duration = Duration::from_secs(120);

/// A project with one customer and one topic: an hourly count, a filter and a view.
pub struct SampleProject {
    pub kafka: Kafka,
    pub project: Project,
    pub customer: String,
    pub topic: String,
}

/// Creates a project with a topic of its own.
pub fn sample_project(kafka: Kafka, partitions: i32) -> SampleProject {
    let (customer, topic) = (unique("cli"), unique("cli_events"));
    kafka.create(&topic, partitions);
    let project = Project::new();
    project
        .schema(
            &customer,
            &format!(
                "SET millstream.timezone = 'Europe/Helsinki';
CREATE STREAM events (
  ts TIMESTAMP NOT NULL FORMAT '%Y-%m-%d %H:%M:%S', sensor BIGINT NOT NULL, room VARCHAR NOT NULL,
  WATERMARK FOR ts AS ts - INTERVAL '1' MINUTE
) WITH (topics = '{topic}');
CREATE EXTERNAL TABLE rooms STORED AS CSV LOCATION 'data/rooms.csv' OPTIONS ('format.has_header' 'true');"
            ),
        )
        .file("data/rooms.csv", "room,restricted\nkitchen,false\nhall,true\n")
        .query(
            &customer,
            "hourly",
            "-- Events per hour and room.
SELECT window_start, window_end, room, count(*) AS events, count(DISTINCT sensor) AS sensors
FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY window_start, window_end, room",
        )
        .query(
            &customer,
            "alerts",
            "SELECT e.ts, e.sensor, e.room FROM events e JOIN rooms r ON e.room = r.room WHERE r.restricted",
        )
        .query(&customer, "latest", "SELECT sensor, max(ts) AS seen, count(*) AS events FROM events GROUP BY sensor");
    SampleProject { kafka, project, customer, topic }
}

impl SampleProject {
    /// Produces one event per minute from 10:00 on; sensor and room follow from the minute.
    pub fn events(&self, minutes: std::ops::Range<i64>) {
        let event = |m: i64| {
            let (hour, minute) = (10 + m / 60, m % 60);
            let room = if m % 3 == 0 { "hall" } else { "kitchen" };
            Write::value(format!(
                r#"{{"ts":"2024-05-01 {hour}:{minute:02}:00","sensor":{},"room":"{room}"}}"#,
                m % 5
            ))
        };
        self.kafka.produce(&self.topic, minutes.map(event));
    }

    pub fn run(&self, more: &[&str]) -> process::Finished {
        let mut all = vec!["run", "--brokers", &self.kafka.brokers];
        all.extend(more);
        run_for(self.project.path(), &all, LONG)
    }

    pub fn query(&self, sql: &str) -> Vec<String> {
        let sql = sql.replace("{c}", &self.customer);
        let answer = run(self.project.path(), &["query", "--format", "csv", &sql]).ok();
        answer.stdout.lines().skip(1).map(str::to_owned).collect()
    }

    /// The sum of events over the rows of `hourly`.
    pub fn hourly_events(&self) -> i64 {
        self.results("hourly").iter().map(|row| row["events"].as_i64().unwrap()).sum()
    }

    pub fn results(&self, query: &str) -> Vec<serde_json::Value> {
        let records = self.kafka.read(&format!("millstream.{}.{query}", self.customer));
        records.iter().map(|r| r.json()).collect()
    }
}
