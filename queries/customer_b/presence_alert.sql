-- An alert for each event in a room that data/office_rooms.csv marks as restricted: the server
-- room has a lock that is often left open.
CREATE STREAM presence_alert AS
SELECT p.event_time, p.part_id, r.room
FROM positions p
JOIN rooms r ON r.room = lower(trim(p.room))
WHERE r.restricted;
