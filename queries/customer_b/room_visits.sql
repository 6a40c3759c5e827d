-- The number of visits of each badge to each place per half day; a visit is one event.
SELECT window_start, window_end, part_id,
       lower(trim(room)) AS room,
       count(*) AS visits
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '12' HOUR)
GROUP BY window_start, window_end, part_id, lower(trim(room));
