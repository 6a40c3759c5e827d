-- How often each resident was seen in each room in a day: a visit is one event of the sensor there.
-- docs/sql.md shows how to turn it into a table of residents by rooms.
SELECT window_start, window_end, part_id,
       replace(lower(trim(room)), 'livingroom', 'living room') AS room,
       count(*) AS visits
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' DAY)
GROUP BY window_start, window_end, part_id, replace(lower(trim(room)), 'livingroom', 'living room');
