-- The hourly trend of each room, in events and in distinct persons. Every minute it publishes the early
-- result of the present hour, with is_final = false.
CREATE STREAM room_usage WITH (emit = 'every 60 seconds') AS
SELECT window_start, window_end,
       lower(trim(room)) AS room,
       count(*) AS events,
       count(DISTINCT part_id) AS persons
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)
GROUP BY window_start, window_end, lower(trim(room));
