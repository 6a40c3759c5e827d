-- The daily activity of each resident: events, and the number of distinct rooms. Two sensors spell rooms
-- differently; both spellings count as one room.
SELECT window_start, window_end, part_id,
       count(*) AS events,
       count(DISTINCT replace(lower(trim(room)), 'livingroom', 'living room')) AS rooms
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' DAY)
GROUP BY window_start, window_end, part_id;
