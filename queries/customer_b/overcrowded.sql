-- Rooms with more persons than their limit. The limits are in data/office_rooms.csv, which you can edit
-- while the pipeline runs.
CREATE MATERIALIZED VIEW overcrowded AS
SELECT o.room, o.persons, r.max_persons
FROM occupancy o
JOIN rooms r ON o.room = r.room
WHERE o.persons > r.max_persons;
