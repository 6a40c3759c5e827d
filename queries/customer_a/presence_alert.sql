-- An alert for each event in a room that data/rooms.csv marks as restricted, such as the hall with
-- the front door.
CREATE STREAM presence_alert AS
SELECT p.event_time, p.part_id, r.room
FROM positions p
JOIN rooms r ON r.room = replace(lower(trim(p.room)), 'livingroom', 'living room')
WHERE r.restricted;
