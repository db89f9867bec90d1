//! What the services answer about the rows of a table.

use std::{
    collections::BTreeMap,
    fmt::{Debug, Write},
};

use tonic::transport::Channel;
use watchpost::pb::{
    self, job_queue_service_client::JobQueueServiceClient, job_schedule_service_client::JobScheduleServiceClient,
    job_type_service_client::JobTypeServiceClient,
};

use crate::support::{TestServer, calls::Reply};

const ALL: i32 = 1_000;

/// The calls that read a table, each with all its answers as text; none for an unknown table.
pub async fn answers(server: &TestServer, table: &str) -> Option<Vec<(&'static str, String)>> {
    let answers = match table {
        "cameras" => cameras(server).await,
        "camera_zones" => zones(server).await,
        "events" => events(server).await,
        "detections" | "event_detections" => detections(server).await,
        "alert_rules" => rules(server).await,
        "alerts" => alerts(server).await,
        "alert_transitions" => transitions(server).await,
        "alert_suppressions" => suppressions(server).await,
        "silences" => silences(server).await,
        "notification_channels" => channels(server).await,
        "deliveries" => deliveries(server).await,
        "jobs" => jobs(server).await,
        "job_attempts" => job_attempts(server).await,
        "job_logs" => job_logs(server).await,
        "job_transitions" => job_transitions(server).await,
        "job_queues" => queues(server).await,
        "job_types" => types(server).await,
        "job_schedules" => schedules(server).await,
        "gpus" => gpus(server).await,
        "gpu_stats" => gpu_stats(server).await,
        "gpu_events" => gpu_events(server).await,
        _ => return None,
    };
    Some(answers)
}

type Answers = Vec<(&'static str, String)>;

/// An answer as text, or the code of its error.
fn text<T: Debug>(reply: Reply<T>) -> String {
    let reply = reply.map(tonic::Response::into_inner);
    format!("{:?}\n", reply.map_err(|status| status.code()))
}

/// Lists all of a resource and gets each one that is listed.
macro_rules! list_and_get {
    ($client:expr, $list:ident($request:expr).$field:ident, $get:ident($get_request:ident { $key:ident })) => {{
        let list = $client.$list($request).await.unwrap().into_inner();
        let mut got = String::new();
        for resource in &list.$field {
            let request = pb::$get_request { $key: resource.$key.clone() };
            got += &text($client.$get(request).await);
        }
        vec![(stringify!($list), format!("{list:?}")), (stringify!($get), got)]
    }};
}

async fn cameras(server: &TestServer) -> Answers {
    let filter = pb::CameraFilter { show_deleted: true, ..Default::default() };
    let request = pb::ListCamerasRequest { page_size: ALL, filter: Some(filter), ..Default::default() };
    let mut client = server.cameras();
    list_and_get!(client, list_cameras(request).cameras, get_camera(GetCameraRequest { id }))
}

async fn zones(server: &TestServer) -> Answers {
    let request = pb::ListCameraZonesRequest { page_size: ALL, ..Default::default() };
    let mut client = server.zones();
    list_and_get!(client, list_camera_zones(request).camera_zones, get_camera_zone(GetCameraZoneRequest { id }))
}

async fn events(server: &TestServer) -> Answers {
    let request = pb::ListEventsRequest { page_size: ALL, ..Default::default() };
    let mut client = server.events();
    list_and_get!(client, list_events(request).events, get_event(GetEventRequest { id }))
}

async fn detections(server: &TestServer) -> Answers {
    let request = pb::ListDetectionsRequest { page_size: ALL, ..Default::default() };
    let list = server.events().list_detections(request).await;
    vec![("list_detections", text(list))]
}

async fn rules(server: &TestServer) -> Answers {
    let request = pb::ListAlertRulesRequest { page_size: ALL, ..Default::default() };
    let mut client = server.rules();
    list_and_get!(client, list_alert_rules(request).alert_rules, get_alert_rule(GetAlertRuleRequest { id }))
}

async fn alerts(server: &TestServer) -> Answers {
    let request = pb::ListAlertsRequest { page_size: ALL, ..Default::default() };
    let mut client = server.alerts();
    list_and_get!(client, list_alerts(request).alerts, get_alert(GetAlertRequest { id }))
}

async fn transitions(server: &TestServer) -> Answers {
    let request = pb::ListAlertTransitionsRequest { page_size: ALL, ..Default::default() };
    let list = server.alerts().list_alert_transitions(request).await;
    vec![("list_alert_transitions", text(list))]
}

async fn suppressions(server: &TestServer) -> Answers {
    let request = pb::ListAlertSuppressionsRequest { page_size: ALL, ..Default::default() };
    let list = server.silences().list_alert_suppressions(request).await;
    vec![("list_alert_suppressions", text(list))]
}

async fn silences(server: &TestServer) -> Answers {
    let request = pb::ListSilencesRequest { page_size: ALL, ..Default::default() };
    let mut client = server.silences();
    list_and_get!(client, list_silences(request).silences, get_silence(GetSilenceRequest { id }))
}

async fn channels(server: &TestServer) -> Answers {
    let request = pb::ListNotificationChannelsRequest { page_size: ALL, ..Default::default() };
    let mut client = server.channels();
    let mut answers = list_and_get!(
        client,
        list_notification_channels(request).notification_channels,
        get_notification_channel(GetNotificationChannelRequest { id })
    );
    let filter = pb::NotificationChannelFilter {
        kinds: vec![pb::NotificationChannelKind::Webhook.into()],
        ..Default::default()
    };
    let request = pb::ListNotificationChannelsRequest { page_size: ALL, filter: Some(filter), ..Default::default() };
    let list = client.list_notification_channels(request).await;
    answers.push(("list_notification_channels by kind", text(list)));
    answers
}

async fn deliveries(server: &TestServer) -> Answers {
    let request = pb::ListDeliveriesRequest { page_size: ALL, ..Default::default() };
    let mut client = server.deliveries();
    list_and_get!(client, list_deliveries(request).deliveries, get_delivery(GetDeliveryRequest { id }))
}

async fn all_jobs(server: &TestServer) -> Vec<pb::Job> {
    let request = pb::ListJobsRequest { page_size: ALL, ..Default::default() };
    let list = server.jobs().list_jobs(request).await;
    let jobs = list.unwrap().into_inner().jobs.into_iter();
    jobs.map(without_timing).collect()
}

/// The timing of a job that has not ended changes all the time.
fn without_timing(job: pb::Job) -> pb::Job {
    pb::Job { timing: None, ..job }
}

async fn jobs(server: &TestServer) -> Answers {
    let list = all_jobs(server).await;
    let mut got = String::new();
    for job in &list {
        let request = pb::GetJobRequest { id: job.id.clone() };
        let job = server.jobs().get_job(request).await.unwrap();
        writeln!(got, "{:?}", without_timing(job.into_inner())).unwrap();
    }
    vec![("list_jobs", format!("{list:?}")), ("get_job", got)]
}

async fn job_attempts(server: &TestServer) -> Answers {
    let (mut listed, mut got) = (String::new(), String::new());
    for pb::Job { id, .. } in all_jobs(server).await {
        let request = pb::ListJobAttemptsRequest { job_id: id.clone(), page_size: ALL, ..Default::default() };
        listed += &text(server.jobs().list_job_attempts(request).await);
        let job = server.jobs().get_job(pb::GetJobRequest { id }).await;
        writeln!(got, "{:?}", job.unwrap().into_inner().attempts).unwrap();
    }
    vec![("list_job_attempts", listed), ("get_job", got)]
}

async fn job_logs(server: &TestServer) -> Answers {
    let mut listed = String::new();
    for pb::Job { id, .. } in all_jobs(server).await {
        let request = pb::ListJobLogsRequest { job_id: id, page_size: ALL, ..Default::default() };
        listed += &text(server.jobs().list_job_logs(request).await);
    }
    vec![("list_job_logs", listed)]
}

async fn job_transitions(server: &TestServer) -> Answers {
    let mut listed = String::new();
    for pb::Job { id, .. } in all_jobs(server).await {
        let request = pb::ListJobTransitionsRequest { job_id: id, page_size: ALL, ..Default::default() };
        listed += &text(server.jobs().list_job_transitions(request).await);
    }
    vec![("list_job_transitions", listed)]
}

pub fn queue_client(server: &TestServer) -> JobQueueServiceClient<Channel> {
    JobQueueServiceClient::new(server.channel.clone())
}

pub fn type_client(server: &TestServer) -> JobTypeServiceClient<Channel> {
    JobTypeServiceClient::new(server.channel.clone())
}

pub fn schedule_client(server: &TestServer) -> JobScheduleServiceClient<Channel> {
    JobScheduleServiceClient::new(server.channel.clone())
}

async fn queues(server: &TestServer) -> Answers {
    let request = pb::ListJobQueuesRequest { page_size: ALL, ..Default::default() };
    let mut client = queue_client(server);
    list_and_get!(client, list_job_queues(request).job_queues, get_job_queue(GetJobQueueRequest { name }))
}

async fn types(server: &TestServer) -> Answers {
    let request = pb::ListJobTypesRequest { page_size: ALL, ..Default::default() };
    let mut client = type_client(server);
    list_and_get!(client, list_job_types(request).job_types, get_job_type(GetJobTypeRequest { name }))
}

async fn schedules(server: &TestServer) -> Answers {
    let request = pb::ListJobSchedulesRequest { page_size: ALL, ..Default::default() };
    let mut client = schedule_client(server);
    list_and_get!(client, list_job_schedules(request).job_schedules, get_job_schedule(GetJobScheduleRequest { id }))
}

async fn gpus(server: &TestServer) -> Answers {
    let list = server.gpu_stats().list_gpus(pb::ListGpusRequest {}).await;
    vec![("list_gpus", text(list))]
}

async fn gpu_stats(server: &TestServer) -> Answers {
    let request = pb::ListGpuStatsRequest { page_size: ALL, ..Default::default() };
    let list = server.gpu_stats().list_gpu_stats(request).await.unwrap();
    let mut listed = String::new();
    for mut stats in list.into_inner().gpu_stats {
        // The map has another order every time.
        let reasons: BTreeMap<_, _> = std::mem::take(&mut stats.absent_reasons).into_iter().collect();
        writeln!(listed, "{stats:?} {reasons:?}").unwrap();
    }
    vec![("list_gpu_stats", listed)]
}

async fn gpu_events(server: &TestServer) -> Answers {
    let request = pb::ListGpuEventsRequest { page_size: ALL, ..Default::default() };
    let list = server.gpu_stats().list_gpu_events(request).await;
    vec![("list_gpu_events", text(list))]
}
