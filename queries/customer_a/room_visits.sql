-- The number of visits of each resident to each room per day; a visit is one event.
-- docs/sql.md shows the same result as a table of residents by rooms.
SELECT window_start, window_end, part_id,
       replace(lower(trim(room)), 'livingroom', 'living room') AS room,
       count(*) AS visits
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' DAY)
GROUP BY window_start, window_end, part_id, replace(lower(trim(room)), 'livingroom', 'living room');
