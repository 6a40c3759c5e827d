//! A visit_query over a query's syntax tree.
//!
//! sqlparser's visitors are generic, and each kind of visitor compiles the visit_query over the whole
//! grammar anew, some 800 functions. All walks that only look go through this one.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, Query, Select, TableFactor, Visit, Visitor,
};
use datafusion::sql::sqlparser::tokenizer::Span;

/// Looks at the nodes of a tree; what it breaks with ends the visit_query.
pub trait QueryVisitor {
    /// Before a query and all that is in it.
    fn query(&mut self, _query: &Query) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// After a query and all that is in it.
    fn end_of_query(&mut self, _query: &Query) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// Before a SELECT.
    fn select(&mut self, _select: &Select) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// Before something in FROM.
    fn table_factor(&mut self, _factor: &TableFactor) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// At the name of a relation.
    fn relation(&mut self, _name: &ObjectName) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }

    /// Before an expression.
    fn expr(&mut self, _expr: &Expr) -> ControlFlow<Span> {
        ControlFlow::Continue(())
    }
}

/// Walks over `query`; gives where `look` broke off, if it did.
pub fn visit_query(query: &Query, look: &mut dyn QueryVisitor) -> Option<Span> {
    query.visit(&mut Walk(look)).break_value()
}

/// Walks over one expression, as [`visit_query`] does over a query.
pub fn visit_expr(expr: &Expr, look: &mut dyn QueryVisitor) -> Option<Span> {
    expr.visit(&mut Walk(look)).break_value()
}

struct Walk<'a>(&'a mut dyn QueryVisitor);

impl Visitor for Walk<'_> {
    type Break = Span;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Span> {
        self.0.query(query)
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<Span> {
        self.0.end_of_query(query)
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Span> {
        self.0.select(select)
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Span> {
        self.0.table_factor(factor)
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Span> {
        self.0.relation(relation)
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Span> {
        self.0.expr(expr)
    }
}
