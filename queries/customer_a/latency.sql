-- The age of events in milliseconds, per minute of event time: from the sensor's clock to Kafka (sensors
-- send whole seconds, so up to one second is rounding), and from Kafka to processing.
SELECT window_start, window_end,
       count(*) AS events,
       approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY to_kafka_ms) AS to_kafka_p50_ms,
       approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY to_kafka_ms) AS to_kafka_p95_ms,
       approx_percentile_cont(0.99) WITHIN GROUP (ORDER BY to_kafka_ms) AS to_kafka_p99_ms,
       approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY processed_ms) AS processed_p50_ms,
       approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY processed_ms) AS processed_p95_ms,
       approx_percentile_cont(0.99) WITHIN GROUP (ORDER BY processed_ms) AS processed_p99_ms
FROM (
  SELECT window_start, window_end,
         (date_part('epoch', ingested_at) - date_part('epoch', event_time)) * 1000 AS to_kafka_ms,
         greatest(date_part('epoch', now()) - date_part('epoch', ingested_at), 0) * 1000 AS processed_ms
  FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' MINUTE)
)
GROUP BY window_start, window_end;
