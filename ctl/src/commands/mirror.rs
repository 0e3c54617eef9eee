//! `swctl mirror`.

use ctl::{
    api::{MirrorKind, MirrorState, Ways},
    client::Client,
};

use crate::{
    cli,
    output::Format,
    table::{Column, Table},
};

/// `swctl mirror …`.
pub(crate) async fn run(client: &Client, format: Format, command: cli::Mirror) -> anyhow::Result<()> {
    match command {
        cli::Mirror::Add(mirror) => _ = client.add_mirror(&mirror.spec()).await?,
        cli::Mirror::Ls => format.print(client.mirrors().await?.as_slice(), list)?,
        cli::Mirror::Rm(mirror) => {
            let mirror = mirror.spec();
            client.remove_mirror(mirror.kind, &mirror.from, &mirror.to).await?;
        }
    }
    Ok(())
}

fn list(mirrors: &[MirrorState]) -> String {
    let mut table = Table::new(&[
        Column::Left("FROM"),
        Column::Left("KIND"),
        Column::Left("WAYS"),
        Column::Left("TO"),
        Column::Left("ACTIVE"),
    ]);
    for mirror in mirrors {
        let kind = match mirror.kind {
            MirrorKind::Port => "port",
            MirrorKind::Network => "network",
        };
        let ways = match mirror.ways {
            Ways::In => "in",
            Ways::Out => "out",
            Ways::Both => "both",
        };
        let active = if mirror.active { "yes" } else { "no" };
        table.row([mirror.from.clone(), kind.into(), ways.into(), mirror.to.clone(), active.into()]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_for_people() {
        let text = r#"[{"kind":"port","from":"web","to":"probe","ways":"in","active":true},
            {"kind":"network","from":"default","to":"probe","ways":"both","active":false}]"#;
        let mirrors: Vec<MirrorState> = serde_json::from_str(text).unwrap();
        let expected = "FROM     KIND     WAYS  TO     ACTIVE\nweb      port     in    probe  yes\ndefault  network  both  probe  no\n";
        assert_eq!(list(&mirrors), expected);
    }
}
