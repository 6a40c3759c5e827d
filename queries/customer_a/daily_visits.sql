-- How lively each resident's day was: events, and in how many different rooms. Two sensors spell
-- rooms in their own way; both spellings count as one room.
SELECT window_start, window_end, part_id,
       count(*) AS events,
       count(DISTINCT replace(lower(trim(room)), 'livingroom', 'living room')) AS rooms
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' DAY)
GROUP BY window_start, window_end, part_id;
