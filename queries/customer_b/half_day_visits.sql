-- How much each employee moved about in each half of a day, midnight to noon to midnight: events, and
-- in how many different places.
SELECT window_start, window_end, part_id,
       count(*) AS events,
       count(DISTINCT lower(trim(room))) AS rooms
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '12' HOUR)
GROUP BY window_start, window_end, part_id;
