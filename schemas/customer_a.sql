-- The rest home: one badge sensor per resident, one topic per sensor (1084, 1085, ...).
-- The topic of a new sensor is discovered while the pipeline runs.
SET millstream.timezone = 'Europe/Helsinki';

CREATE STREAM positions (
  part_id     BIGINT  NOT NULL,                          -- the resident
  ts_date     VARCHAR NOT NULL,                          -- local date, 20191030
  ts_time     VARCHAR NOT NULL,                          -- local time, 07:41:38 or 7:41:38
  room        VARCHAR NOT NULL,
  ingested_at TIMESTAMP METADATA FROM 'timestamp',       -- when Kafka received the event
  event_time  TIMESTAMP AS to_timestamp(ts_date || ' ' || ts_time, '%Y%m%d %H:%M:%S'),
  WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND
) WITH (
  topic_pattern = '10[0-9][0-9]',
  format        = 'json'
);

-- Properties of rooms. Running queries use the new content when the file is edited.
CREATE EXTERNAL TABLE rooms STORED AS CSV LOCATION 'data/rooms.csv' OPTIONS ('format.has_header' 'true');
