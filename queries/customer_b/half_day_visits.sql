-- The activity of each employee per half day (midnight to noon, noon to midnight): events, and the number
-- of distinct places.
SELECT window_start, window_end, part_id,
       count(*) AS events,
       count(DISTINCT lower(trim(room))) AS rooms
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '12' HOUR)
GROUP BY window_start, window_end, part_id;
