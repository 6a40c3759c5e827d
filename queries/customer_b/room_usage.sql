-- The hourly trend of each room, in events and in different persons; every minute it says how the
-- present hour looks so far (is_final is false then).
CREATE STREAM room_usage WITH (emit = 'every 60 seconds') AS
SELECT window_start, window_end,
       lower(trim(room)) AS room,
       count(*) AS events,
       count(DISTINCT part_id) AS persons
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)
GROUP BY window_start, window_end, lower(trim(room));
