//! Finds the relations that a query reads: those in FROM at any depth, except common table
//! expressions, and the first argument of each window function.

use std::collections::HashSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, Spanned, TableFactor,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::catalog::ast_visitor::{QueryVisitor, visit_query};
use crate::catalog::sql_text::WINDOW_FUNCTIONS;
use crate::catalog::statement::fold_identifier;

/// One reference to a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableReference {
    /// The name in DataFusion's case; the parts of a qualified name are joined by dots.
    pub name: String,
    pub span: Span,
}

/// Finds all references in `query`, in the order of the text as far as the syntax tree preserves it.
pub(super) fn find_table_references(query: &ast::Query) -> Vec<TableReference> {
    let mut collector = ReferenceCollector::default();
    visit_query(query, &mut collector);
    collector.found
}

/// Collects references. A WITH clause is walked explicitly, because each of its queries sees only the
/// names before its own (all of them with RECURSIVE); the visitor then skips these queries.
#[derive(Default)]
struct ReferenceCollector {
    found: Vec<TableReference>,
    /// The names of common table expressions in scope, one set per nesting level.
    cte_names: Vec<HashSet<String>>,
    /// The addresses of the queries that were walked explicitly.
    walked: HashSet<usize>,
    /// The number of queries in `walked` that enclose the current node.
    skipping: usize,
}

fn address(query: &ast::Query) -> usize {
    std::ptr::from_ref(query).addr()
}

fn name_of(ident: &Ident) -> String {
    fold_identifier(&ident.value, ident.quote_style)
}

fn qualified_name(name: &ObjectName) -> String {
    name.0.iter().filter_map(|part| part.as_ident()).map(name_of).collect::<Vec<_>>().join(".")
}

impl ReferenceCollector {
    fn add_reference(&mut self, name: String, span: Span) {
        if !self.cte_names.iter().any(|level| level.contains(&name)) {
            self.found.push(TableReference { name, span });
        }
    }

    fn visit_with_clause(&mut self, with: &ast::With) {
        let all = with.cte_tables.iter().map(|cte| name_of(&cte.alias.name));
        self.cte_names.push(if with.recursive { all.collect() } else { HashSet::new() });
        for cte in &with.cte_tables {
            visit_query(&cte.query, self);
            self.walked.insert(address(&cte.query));
            if let Some(level) = self.cte_names.last_mut() {
                level.insert(name_of(&cte.alias.name));
            }
        }
    }

    fn visit_table_function(&mut self, name: &ObjectName, args: &[FunctionArg]) {
        if !WINDOW_FUNCTIONS.contains(&qualified_name(name).as_str()) {
            return;
        }
        match args.first() {
            Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(ident)))) => {
                self.add_reference(name_of(ident), ident.span);
            }
            Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(
                expr @ Expr::CompoundIdentifier(parts),
            ))) => {
                self.add_reference(
                    parts.iter().map(name_of).collect::<Vec<_>>().join("."),
                    expr.span(),
                );
            }
            _ => {}
        }
    }
}

impl QueryVisitor for ReferenceCollector {
    fn query(&mut self, query: &ast::Query) -> ControlFlow<Span> {
        if self.skipping > 0 || self.walked.contains(&address(query)) {
            self.skipping += 1;
            return ControlFlow::Continue(());
        }
        match &query.with {
            Some(with) => self.visit_with_clause(with),
            None => self.cte_names.push(HashSet::new()),
        }
        ControlFlow::Continue(())
    }

    fn end_of_query(&mut self, _query: &ast::Query) -> ControlFlow<Span> {
        if self.skipping > 0 {
            self.skipping -= 1;
        } else {
            self.cte_names.pop();
        }
        ControlFlow::Continue(())
    }

    fn table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Span> {
        if self.skipping == 0
            && let TableFactor::Table { name, args, .. } = factor
        {
            match args {
                None => self.add_reference(qualified_name(name), name.span()),
                Some(args) => self.visit_table_function(name, &args.args),
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
        find_table_references(&query).into_iter().map(|reference| reference.name).collect()
    }

    #[test]
    fn references_at_any_depth() {
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
    fn the_first_argument_of_a_window_function_is_a_reference() {
        let sql = "SELECT * FROM TUMBLE(TABLE Positions, DESCRIPTOR(ts), INTERVAL '1' DAY) \
                   JOIN hop(s.visits, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '2' HOUR) ON true";
        assert_eq!(names(sql), ["positions", "s.visits"]);
        let sessions =
            "SELECT * FROM SESSION(TABLE p PARTITION BY a, b, DESCRIPTOR(ts), INTERVAL '5' MINUTE)";
        assert_eq!(names(sessions), ["p"]);
        assert_eq!(names("SELECT * FROM generate_series(a, 3)"), Vec::<String>::new());
    }

    #[test]
    fn common_table_expressions_shadow_later_references() {
        let sql =
            "WITH a AS (SELECT * FROM a), b AS (SELECT * FROM a JOIN c ON true) SELECT * FROM b";
        assert_eq!(names(sql), ["a", "c"], "the first a is the relation");
        assert_eq!(names("SELECT * FROM (WITH t AS (SELECT 1) SELECT * FROM t) u, t"), ["t"]);
        assert_eq!(names("WITH t AS (SELECT 1) SELECT (SELECT max(x) FROM t) FROM u"), ["u"]);
        let recursive = "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT * FROM r) SELECT * FROM r";
        assert_eq!(names(recursive), Vec::<String>::new());
        let windowed = "WITH w AS (SELECT * FROM s) SELECT * FROM TUMBLE(TABLE w, DESCRIPTOR(t), INTERVAL '1' DAY)";
        assert_eq!(names(windowed), ["s"]);
    }
}
