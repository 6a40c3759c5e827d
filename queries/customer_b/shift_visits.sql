-- The visits per shift of eight hours, which start at 00:00, 08:00 and 16:00 local time.
SELECT window_start, window_end, part_id,
       count(*) AS events,
       count(DISTINCT lower(trim(room))) AS rooms
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '8' HOUR)
GROUP BY window_start, window_end, part_id;
