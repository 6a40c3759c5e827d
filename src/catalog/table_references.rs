//! Which relations a query reads: those in FROM, at any depth, that are no common table
//! expression; and the first argument of a window function.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, Spanned, TableFactor,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::catalog::ast_visitor::{QueryVisitor, visit_query};
use crate::catalog::sql_text::WINDOW_FUNCTIONS;
use crate::catalog::statement::folded;

/// One mention of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// Folded; the parts of a qualified name joined by dots.
    pub name: String,
    pub span: Span,
}

/// All mentions in `query`, in textual order as far as the tree keeps it.
pub(super) fn references(query: &ast::Query) -> Vec<Reference> {
    let mut collector = Collector::default();
    visit_query(query, &mut collector);
    collector.found
}

/// Walks the tree. A WITH clause is taken apart by hand, for each of its queries sees only the
/// names before its own (all of them with RECURSIVE); the visitor then skips these queries.
#[derive(Default)]
struct Collector {
    found: Vec<Reference>,
    /// Names hidden by common table expressions, one set a level.
    hidden: Vec<HashSet<String>>,
    /// Addresses of the queries that were walked by hand.
    walked: HashSet<usize>,
    /// How many walked queries enclose the present node.
    skipping: usize,
}

fn address(query: &ast::Query) -> usize {
    std::ptr::from_ref(query).addr()
}

fn fold(ident: &Ident) -> String {
    folded(&ident.value, ident.quote_style)
}

fn whole_name(name: &ObjectName) -> String {
    name.0.iter().filter_map(|part| part.as_ident()).map(fold).collect::<Vec<_>>().join(".")
}

impl Collector {
    fn mention(&mut self, name: String, span: Span) {
        if !self.hidden.iter().any(|level| level.contains(&name)) {
            self.found.push(Reference { name, span });
        }
    }

    fn with_clause(&mut self, with: &ast::With) {
        let all = with.cte_tables.iter().map(|cte| fold(&cte.alias.name));
        self.hidden.push(if with.recursive { all.collect() } else { HashSet::new() });
        for cte in &with.cte_tables {
            visit_query(&cte.query, self);
            self.walked.insert(address(&cte.query));
            if let Some(level) = self.hidden.last_mut() {
                level.insert(fold(&cte.alias.name));
            }
        }
    }

    fn table_function(&mut self, name: &ObjectName, args: &[FunctionArg]) {
        if !WINDOW_FUNCTIONS.contains(&whole_name(name).as_str()) {
            return;
        }
        match args.first() {
            Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(ident)))) => {
                self.mention(fold(ident), ident.span);
            }
            Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(
                expr @ Expr::CompoundIdentifier(parts),
            ))) => {
                self.mention(parts.iter().map(fold).collect::<Vec<_>>().join("."), expr.span());
            }
            _ => {}
        }
    }
}

impl QueryVisitor for Collector {
    fn query(&mut self, query: &ast::Query) -> ControlFlow<Span> {
        if self.skipping > 0 || self.walked.contains(&address(query)) {
            self.skipping += 1;
            return ControlFlow::Continue(());
        }
        match &query.with {
            Some(with) => self.with_clause(with),
            None => self.hidden.push(HashSet::new()),
        }
        ControlFlow::Continue(())
    }

    fn end_of_query(&mut self, _query: &ast::Query) -> ControlFlow<Span> {
        if self.skipping > 0 {
            self.skipping -= 1;
        } else {
            self.hidden.pop();
        }
        ControlFlow::Continue(())
    }

    fn table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Span> {
        if self.skipping == 0
            && let TableFactor::Table { name, args, .. } = factor
        {
            match args {
                None => self.mention(whole_name(name), name.span()),
                Some(args) => self.table_function(name, &args.args),
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn names(sql: &str) -> Vec<String> {
        let query = crate::catalog::parse_query(Path::new("q.sql"), sql).unwrap();
        references(&query).into_iter().map(|reference| reference.name).collect()
    }

    #[test]
    fn at_any_depth() {
        assert_eq!(
            names(
                "SELECT * FROM a JOIN B ON a.x IN (SELECT y FROM c) \
                 WHERE EXISTS (SELECT 1 FROM \"D\") UNION ALL SELECT * FROM (SELECT * FROM x.y) t"
            ),
            ["a", "b", "c", "D", "x.y"]
        );
        assert_eq!(names("SELECT 1"), Vec::<String>::new());
    }

    #[test]
    fn window_functions_read_their_first_argument() {
        let sql = "SELECT * FROM TUMBLE(TABLE Positions, DESCRIPTOR(ts), INTERVAL '1' DAY) \
                   JOIN hop(s.visits, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '2' HOUR) ON true";
        assert_eq!(names(sql), ["positions", "s.visits"]);
        let sessions =
            "SELECT * FROM SESSION(TABLE p PARTITION BY a, b, DESCRIPTOR(ts), INTERVAL '5' MINUTE)";
        assert_eq!(names(sessions), ["p"]);
        assert_eq!(names("SELECT * FROM generate_series(a, 3)"), Vec::<String>::new());
    }

    #[test]
    fn common_table_expressions_hide_names_after_themselves() {
        let sql =
            "WITH a AS (SELECT * FROM a), b AS (SELECT * FROM a JOIN c ON true) SELECT * FROM b";
        assert_eq!(names(sql), ["a", "c"], "the first a is the outer one");
        assert_eq!(names("SELECT * FROM (WITH t AS (SELECT 1) SELECT * FROM t) u, t"), ["t"]);
        assert_eq!(names("WITH t AS (SELECT 1) SELECT (SELECT max(x) FROM t) FROM u"), ["u"]);
        let recursive = "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT * FROM r) SELECT * FROM r";
        assert_eq!(names(recursive), Vec::<String>::new());
        let windowed = "WITH w AS (SELECT * FROM s) SELECT * FROM TUMBLE(TABLE w, DESCRIPTOR(t), INTERVAL '1' DAY)";
        assert_eq!(names(windowed), ["s"]);
    }
}
