-- Rooms with more persons than they are meant for. The limits are in data/rooms.csv: edit it while the
-- pipeline runs.
CREATE MATERIALIZED VIEW overcrowded AS
SELECT o.room, o.persons, r.max_persons
FROM occupancy o
JOIN rooms r ON o.room = r.room
WHERE o.persons > r.max_persons;
