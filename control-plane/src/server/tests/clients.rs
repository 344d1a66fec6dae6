//! The operator's clients.

use muster_proto::v1::{
    approval_service_client::ApprovalServiceClient,
    enrollment_service_client::EnrollmentServiceClient, grant_service_client::GrantServiceClient,
    policy_service_client::PolicyServiceClient, principal_service_client::PrincipalServiceClient,
    token_service_client::TokenServiceClient,
};
use tonic::transport::Channel;

use super::Plane;

impl Plane {
    pub(super) fn enrollment(&self) -> EnrollmentServiceClient<Channel> {
        EnrollmentServiceClient::new(self.operator.clone())
    }

    pub(super) fn principals(&self) -> PrincipalServiceClient<Channel> {
        PrincipalServiceClient::new(self.operator.clone())
    }

    pub(super) fn tokens(&self) -> TokenServiceClient<Channel> {
        TokenServiceClient::new(self.operator.clone())
    }

    pub(super) fn policy(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.operator.clone())
    }

    pub(super) fn approvals(&self) -> ApprovalServiceClient<Channel> {
        ApprovalServiceClient::new(self.operator.clone())
    }

    pub(super) fn grants(&self) -> GrantServiceClient<Channel> {
        GrantServiceClient::new(self.operator.clone())
    }
}
