-- The number of persons in each room now. A room without persons is deleted from the result. Badges in
-- the rack do not count.
CREATE MATERIALIZED VIEW occupancy AS
SELECT room, count(*) AS persons
FROM current_room
WHERE room <> 'badge rack'
GROUP BY room;
