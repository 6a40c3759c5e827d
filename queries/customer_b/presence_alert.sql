-- An alert for each event in a room that data/office_rooms.csv marks as restricted, such as the
-- server room, whose door is often unlocked.
CREATE STREAM presence_alert AS
SELECT p.event_time, p.part_id, r.room
FROM positions p
JOIN rooms r ON r.room = lower(trim(p.room))
WHERE r.restricted;
