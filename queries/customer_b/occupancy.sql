-- How many persons are in each room now; a room that empties is deleted from the result. Badges in the
-- rack are nobody's presence.
CREATE MATERIALIZED VIEW occupancy AS
SELECT room, count(*) AS persons
FROM current_room
WHERE room <> 'badge rack'
GROUP BY room;
