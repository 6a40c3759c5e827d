-- How often each badge was seen in each place in half a day: a visit is one event of the badge there.
SELECT window_start, window_end, part_id,
       lower(trim(room)) AS room,
       count(*) AS visits
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '12' HOUR)
GROUP BY window_start, window_end, part_id, lower(trim(room));
